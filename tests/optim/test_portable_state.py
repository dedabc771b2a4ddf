"""`portable_state_dict`: torch's keys, in float32, whatever the states are stored in."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from cases import BF16, CASES, F16, F32, F64, Case
from stored_states import may_be_stored_in
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt
from fusedopt import portable_state_dict
from fusedopt.replacement import torchs_own

SLOW = [case for case in CASES if case.name.endswith("-decay")]
without_twin = pytest.mark.parametrize(
    "case", [case for case in SLOW if not case.twin and case.cls is not fusedopt.SGD], ids=str
)


def stored(cases: list[Case]) -> pytest.MarkDecorator:
    """Each case in each way of storing parameters and states that it may be stored in."""
    ways = (F32, BF16), (BF16, F32), (BF16, None), (F16, None), (F32, None)
    chosen = [(case, *way) for case in cases for way in ways if may_be_stored_in(case, way[1])]
    return pytest.mark.parametrize(("case", "dtype", "state_dtype"), chosen, ids=str)


def parameters(dtype: torch.dtype) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng).to(dtype)) for shape in [(7, 5), (33,), ()]]


def run(optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(step + 1)
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = (0.3 * torch.randn(p.shape, generator=rng)).to(p.dtype)
        optimizer.step()


def copies(params: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [nn.Parameter(p.detach().to(dtype, copy=True)) for p in params]


def portable(optimizer: Optimizer) -> dict[str, Any]:
    """Through a file, as other scripts get it, and with nothing changed here."""
    before = copy.deepcopy(optimizer.state_dict())
    file = io.BytesIO()
    torch.save(portable_state_dict(optimizer), file)
    assert_equal(optimizer.state_dict(), before)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(actual[name], value)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, list):
        for its, value in zip(actual, expected, strict=True):
            assert_equal(its, value)
    else:
        assert actual == expected


@stored([case for case in SLOW if case.twin])
def test_torch_goes_on_from_it(case: Case, dtype: torch.dtype, state_dtype: torch.dtype | None) -> None:
    assert case.twin is not None
    params = parameters(dtype)
    ours = case.make(params, state_dtype=state_dtype)
    run(ours, range(3))
    saved = portable(ours)
    wide = copies(params, F32)
    theirs = torchs_own(case.twin, wide, **case.kwargs)
    assert saved["param_groups"][0].keys() == theirs.state_dict()["param_groups"][0].keys()
    assert {v.dtype for state in saved["state"].values() for v in state.values()} <= {F32}
    theirs.load_state_dict(copy.deepcopy(saved))
    for p, q in zip(params, wide, strict=True):
        for name in case.states:
            assert theirs.state[q][name].dtype == F32
            assert_equal(theirs.state[q][name], ours.state[p][name].float())
    exact = case.cls(others := copies(params, F32), **case.kwargs)  # which says what the next steps are
    exact.load_state_dict(saved)
    for optimizer in (theirs, exact):
        run(optimizer, range(3, 6))
    for q, other in zip(wide, others, strict=True):
        torch.testing.assert_close(q, other, rtol=1e-5, atol=1e-6)


@stored([case for case in SLOW if case.states and "classic" not in case.name])
def test_ours_goes_on_from_it_as_if_nothing_had_been(
    case: Case, dtype: torch.dtype, state_dtype: torch.dtype | None
) -> None:
    params = parameters(dtype)
    optimizer = case.make(params, state_dtype=state_dtype)
    run(optimizer, range(3))
    there = copies(params, dtype)
    other = case.make(there, state_dtype=state_dtype)
    other.load_state_dict(portable(optimizer))
    run(optimizer, range(3, 5))
    run(other, range(3, 5))
    assert_equal(there, params)
    for p, q in zip(params, there, strict=True):
        assert_equal(other.state[q], optimizer.state[p])


@without_twin
def test_classes_that_torch_has_not_keep_their_keys(case: Case) -> None:
    optimizer = case.make(parameters(F32), state_dtype=BF16)
    run(optimizer, range(2))
    saved = portable(optimizer)
    plain = case.make(parameters(F32))
    assert saved["param_groups"][0].keys() == plain.state_dict()["param_groups"][0].keys()
    assert {v.dtype for v in saved["state"].get(0, {}).values()} == ({F32} if case.states else set())


@pytest.mark.parametrize("name", ["sgd-classic-decay", "sgd-classic-dampening-decay", "sgd-classic-nesterov-decay"])
def test_torch_goes_on_from_classic_momentum(name: str) -> None:
    case = next(case for case in SLOW if case.name == name)
    ours = case.make(params := parameters(F32))
    run(ours, range(3))
    saved = portable(ours)
    options = {k: v for k, v in case.kwargs.items() if k != "momentum_form"}
    theirs = torch.optim.SGD(there := copies(params, F32), **options)
    assert saved["param_groups"][0].keys() == theirs.state_dict()["param_groups"][0].keys()
    theirs.load_state_dict(saved)
    run(ours, range(3, 6))
    run(theirs, range(3, 6))
    for p, q in zip(params, there, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)


def test_classic_momentum_without_a_rate_is_refused() -> None:
    optimizer = fusedopt.SGD(parameters(F32), lr=0.1, momentum=0.9, momentum_form="classic")
    run(optimizer, range(1))
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match="learning rate, which is 0"):
        portable_state_dict(optimizer)


@pytest.mark.parametrize("cls", [fusedopt.SGD, fusedopt.Adagrad])
def test_options_of_ours_are_left_out_and_those_of_others_stay(cls: Any) -> None:
    optimizer = cls(parameters(F32), lr=0.1, capturable=True, state_dtype=BF16)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.param_groups[0]["note"] = "mine"
    (group,) = optimizer.state_dict()["param_groups"]
    (saved,) = portable(optimizer)["param_groups"]
    assert group.keys() - saved.keys() == {"capturable", "state_dtype"}
    assert saved["initial_lr"] == 0.1
    assert saved["note"] == "mine"


def test_the_count_that_sgd_keeps_on_a_gpu_is_left_out() -> None:
    optimizer = fusedopt.SGD(parameters(F32), lr=0.1, momentum=0.9, dampening=0.5)
    run(optimizer, range(2))
    for state in optimizer.state.values():
        state["step"] = torch.tensor(2.0)
    assert [list(state) for state in portable(optimizer)["state"].values()] == [["momentum_buffer"]] * 3


def test_float64_and_complex_numbers_stay_and_are_not_copied() -> None:
    params = [nn.Parameter(torch.randn(3, dtype=dtype)) for dtype in (F64, torch.complex64)]
    optimizer = fusedopt.AdamW(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = portable_state_dict(optimizer)
    for i, p in enumerate(params):
        assert saved["state"][i]["exp_avg"] is optimizer.state[p]["exp_avg"]


def test_states_of_torchs_own_classes_become_float32() -> None:
    theirs = torchs_own(torch.optim.AdamW, params := parameters(BF16))
    run(theirs, range(2))
    with fusedopt.installed():
        saved = portable(theirs)
    assert saved["param_groups"] == theirs.state_dict()["param_groups"]
    assert saved["state"][0]["exp_avg"].dtype == F32
    assert_equal(saved["state"][0]["exp_avg"], theirs.state[params[0]]["exp_avg"].float())


def test_fused_of_rmsprop_is_left_out() -> None:
    optimizer = fusedopt.RMSprop([{"params": parameters(F32), "fused": True}], fused=True)
    run(optimizer, range(1))
    theirs = torchs_own(torch.optim.RMSprop, parameters(F32))
    assert portable(optimizer)["param_groups"][0].keys() == theirs.state_dict()["param_groups"][0].keys()
