"""The average of the weights that a step keeps: that of ExponentialAverage, in every class and storage."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from cases import BF16, F16, F32, F64, ONE_OF_EACH, Case, dtype_id
from stored_states import assert_equal, give_gradients, parameters, saved
from torch import Tensor, nn

import fusedopt
from fusedopt import native
from fusedopt.training import ExponentialAverage

pytestmark = pytest.mark.steps
by_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)


class Followed:
    """What ExponentialAverage makes of parameters, or of their master weights."""

    def __init__(self, params: list[Tensor], decay: float) -> None:
        self.model = nn.ParameterList([nn.Parameter(p.detach().float()) for p in params])
        self.average = ExponentialAverage(self.model, decay)

    def see(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(self.model, values, strict=True):
                p.copy_(value)
        self.average.update_parameters(self.model)

    def assert_close(self, means: list[Tensor]) -> None:
        for mean, expected in zip(means, self.average.module, strict=True):
            torch.testing.assert_close(mean, expected.detach(), rtol=1e-6, atol=1e-6)


def averages(opt: Any, params: list[Tensor]) -> list[Tensor]:
    return [opt.state[p]["average"] for p in params]


@pytest.mark.each_isa
@by_case
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=dtype_id)
def test_it_is_that_of_the_training_loop(case: Case, dtype: torch.dtype) -> None:
    params, twins = parameters(dtype), parameters(dtype)
    opt, without = case.make(params, ema_decay=0.6), case.make(twins)
    followed = Followed(params, 0.6)
    for step in range(12):  # beyond the warm-up, which ends at 14 / 23 > 0.6
        for its in (params, twins):
            give_gradients(its, step)
        opt.step()
        without.step()
        followed.see(params)
    assert all(e.path == "fused" and "average of the weights" in e.reason for e in opt.explain())
    followed.assert_close(averages(opt, params))
    for p, q in zip(params, twins, strict=True):
        # Coded float32 is computed in the same arithmetic, with sums in the same order.
        assert_equal(p.detach(), q.detach())


@pytest.mark.parametrize("case", {c.cls: c for c in ONE_OF_EACH}.values(), ids=str)
def test_the_plain_path_keeps_it_too(case: Case) -> None:
    params = parameters(F32)
    opt = case.make(params, ema_decay=0.5)
    followed = Followed(params, 0.5)
    for step in range(6):
        give_gradients(params, step)
        if step in (0, 3):
            with native():
                opt.step()
        else:
            opt.step()
        followed.see(params)
    followed.assert_close(averages(opt, params))
    assert {float(opt.state[p]["step"]) for p in params} == {6.0}


def test_it_is_of_the_master_weights() -> None:
    params = parameters(BF16)
    opt = fusedopt.AdamW(params, lr=1e-4, master_weights=True, ema_decay=0.5)
    followed = Followed(params, 0.5)
    for step in range(6):
        give_gradients(params, step)
        opt.step()
        followed.see(opt.exact_parameters())
    followed.assert_close(averages(opt, params))
    before = opt.exact_parameters()
    with opt.averaged_weights():
        for p, mean in zip(params, averages(opt, params), strict=True):
            assert_equal(p.detach(), mean.to(BF16))
    for p, q in zip(before, opt.exact_parameters(), strict=True):
        assert_equal(q, p)


def test_in_bfloat16_it_is_rounded_by_chance() -> None:
    p = torch.ones(100_000, dtype=BF16, requires_grad=True)
    opt = fusedopt.SGD([p], lr=0.0, stochastic_rounding=True, ema_decay=0.999)
    p.grad = torch.zeros_like(p)
    opt.step()
    opt.state[p]["step"].fill_(100_000.0)
    assert opt.state[p]["average"].dtype == BF16
    with torch.no_grad():
        p.fill_(1.5)
    for _ in range(100):
        opt.step()
    expected = 1.5 - 0.5 * 0.999**100
    assert opt.state[p]["average"].float().mean().item() == pytest.approx(expected, abs=2e-4)


def test_the_model_has_it_for_a_while() -> None:
    model = nn.Linear(5, 3)
    frozen = nn.Parameter(torch.ones(2))
    opt = fusedopt.AdamW([*model.parameters(), frozen], lr=0.1, ema_decay=0.9)
    for step in range(3):
        give_gradients(list(model.parameters()), step)
        opt.step()
    weight = model.weight.detach().clone()
    versions = model.weight._version

    def look() -> None:
        with opt.averaged_weights():
            assert_equal(model.weight.detach(), opt.state[model.weight]["average"])
            assert not torch.equal(model.weight, weight)
            assert frozen.tolist() == [1, 1]
            for again in (opt.step, lambda: opt.averaged_weights().__enter__()):
                with pytest.raises(RuntimeError, match="average"):
                    again()
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert_equal(model.weight.detach(), weight)
    assert model.weight._version > versions
    opt.step()
    with pytest.raises(ValueError, match="ema_decay"):
        fusedopt.AdamW(model.parameters()).averaged_weights().__enter__()


def test_a_parameter_that_gets_another_shape_meanwhile() -> None:
    params = parameters(F32, [(3,), (2,), (4,)])
    opt = fusedopt.SGD(params, lr=1.0, ema_decay=0.5)
    for step in range(3):
        give_gradients(params, step)
        opt.step()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="size of tensor"), opt.averaged_weights():
        params[1].data = torch.zeros(5)
    assert params[1].tolist() == [0] * 5
    assert_equal(params[0].detach(), before[0])
    assert_equal(params[2].detach(), before[2])
    with (
        pytest.raises(RuntimeError, match="size of tensor"),
        opt.averaged_weights(),
    ):  # of which the average has another
        pytest.fail("went into the block")
    assert_equal(params[0].detach(), before[0])
    assert_equal(params[2].detach(), before[2])
    params[1].data = before[1]
    give_gradients(params, 3)
    opt.step()
    assert opt.state[params[2]]["step"] == 4


def test_the_optimizer_is_not_copied_meanwhile() -> None:
    model = nn.Linear(5, 3)
    opt = fusedopt.AdamW(model.parameters(), ema_decay=0.5)
    give_gradients(list(model.parameters()), 0)
    opt.step()
    with opt.averaged_weights():
        for copied in (copy.deepcopy, copy.copy, pickle.dumps):
            with pytest.raises(RuntimeError, match="would go on from the averages"):
                copied(opt)
        averaged = copy.deepcopy(model)
        saved(opt)
    other = copy.deepcopy(opt)
    other.step()
    assert_equal(averaged.weight.detach(), opt.state[model.weight]["average"])


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_resumed_run_goes_on_bit_for_bit(name: str) -> None:
    params = parameters(BF16)
    opt = getattr(fusedopt, name)(params, lr=0.01, ema_decay=0.9)
    for step in range(3):
        give_gradients(params, step)
        opt.step()
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = getattr(fusedopt, name)(copies, lr=0.01)
    other.load_state_dict(saved(opt))
    for its, run in ((params, opt), (copies, other)):
        give_gradients(its, 5)
        run.step()
    for mean, expected in zip(averages(other, copies), averages(opt, params), strict=True):
        assert mean.dtype == F32
        assert_equal(mean, expected)
    assert "average" not in fusedopt.portable_state_dict(opt)["state"][0]


def test_it_is_taken_away_and_counted() -> None:
    params = parameters(F32, [(100,)])
    opt = fusedopt.AdamW(params, lr=0.01, ema_decay=0.9)
    give_gradients(params, 0)
    opt.step()
    assert opt.memory()["average"] == 400
    assert opt.bytes_per_step() == 100 * 4 * (7 + 2)
    mean = opt.state[params[0]]["average"].clone()
    del opt.param_groups[0]["ema_decay"]
    opt.step()
    assert_equal(opt.state[params[0]]["average"], mean)
    assert opt.bytes_per_step() == 100 * 4 * 7


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1, True, "0.9", float("nan")])
def test_a_decay_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Invalid ema_decay"):
        fusedopt.AdamW(parameters(F32), ema_decay=value)


def test_a_decay_that_has_become_none_is_refused_before_anything_is_written() -> None:
    params = parameters(F32, [(3,)])
    opt = fusedopt.AdamW(params, lr=0.1, ema_decay=0.9)
    give_gradients(params, 0)
    opt.step()
    before = params[0].detach().clone()
    for value in (0.0, 1.0, -1.0, float("nan"), "x"):
        opt.param_groups[0]["ema_decay"] = value
        with pytest.raises(ValueError, match="Invalid ema_decay"):
            opt.step()
    assert_equal(params[0].detach(), before)


def test_another_threads_step_comes_to_its_end_first() -> None:
    p = torch.zeros(2_000_000, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = fusedopt.SGD([p], lr=1.0, ema_decay=0.5)
    opt.step()
    done = threading.Event()
    steps = 1

    def train() -> None:
        nonlocal steps
        while not done.is_set():
            with contextlib.suppress(RuntimeError):  # within the block
                opt.step()
                steps += 1

    thread = threading.Thread(target=train)
    thread.start()
    for _ in range(20):
        with opt.averaged_weights():
            pass
    done.set()
    thread.join()
    assert p.unique().tolist() == [-float(steps)]


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="ema_decay is for parameters of"):
        fusedopt.AdamW(parameters(F64), ema_decay=0.9)


def test_a_default_device_does_not_matter() -> None:
    """Of a rule that keeps no count, the count is made for the average."""
    params = parameters(F32, [(100,)])
    opt = fusedopt.SGD(params, lr=0.1, ema_decay=0.9)
    give_gradients(params, 0)
    with torch.device("meta"):
        opt.step()
        opt.step()
    assert opt.state[params[0]]["step"] == 2
    assert {row.path for row in opt.explain()} == {"fused"}
