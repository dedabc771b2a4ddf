"""Stochastic rounding: unbiased, the same bits everywhere and after a resume, and what small steps need."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from cases import BF16, CASES, F16, F32, ONE_OF_EACH, Case
from stored_states import assert_close, assert_equal, give_gradients, may_be_stored_in, parameters, saved
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fusedopt
from fusedopt import _C, native
from fusedopt.optim._codecs import rounded_by_chance

pytestmark = pytest.mark.steps
PLAIN = list({c.cls: c for c in CASES if not c.name.endswith(("-decay", "-fast"))}.values())
SHAPES = [(3, 5), (16,), (16 * 1024 + 37,), (), (0, 4), (4, 3, 2, 2)]


def some(dtype: torch.dtype = BF16) -> list[Tensor]:
    params = parameters(dtype, SHAPES)
    params[-1] = params[-1].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    return params


def wide_run(case: Case, opt: Any, params: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """A run in float32 from what is stored now, with the gradients of now."""
    wide = [p.detach().float().clone().requires_grad_() for p in params]
    exact = case.make(wide)
    ours = ("params", "stochastic_rounding", "state_dtype", "rounding_seed")
    for group, own in zip(exact.param_groups, opt.param_groups, strict=True):
        group |= {name: copy.deepcopy(v) for name, v in own.items() if name not in ours}
    for p, q in zip(params, wide, strict=True):
        q.grad = p.grad.float()  # type: ignore[union-attr]
        if state := opt.state.get(p):
            exact.state[q] = {
                name: v.float().clone() if name in case.states else copy.deepcopy(v)
                for name, v in state.items()
                if name != "rounding_key"
            }
    return exact, wide


@pytest.mark.each_isa
@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if may_be_stored_in(c, BF16)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bfloat16", "states"])
def test_a_step_is_that_of_float32_rounded_by_chance(case: Case, dtype: torch.dtype) -> None:
    if dtype == F32 and not case.states:
        pytest.skip("nothing is stored in bfloat16")
    params = some(dtype)
    opt = case.make(params, stochastic_rounding=True, **({} if dtype == BF16 else {"state_dtype": BF16}))
    for step in range(4):
        give_gradients(params, step)
        if step == 0:
            opt.step()  # whose first states are others
            continue
        exact, wide = wide_run(case, opt, params)
        opt.step()
        exact.step()
        names = _C.STATES[opt._numbers(opt.param_groups[0])[0]]  # type: ignore[attr-defined]
        for p, q in zip(params, wide, strict=True):
            key, count = opt.state[p]["rounding_key"], float(opt.state[p]["step"])
            assert count == step + 1
            for name in case.states:
                expected = rounded_by_chance(exact.state[q][name], key, count, 2 + names.index(name))
                assert_equal(opt.state[p][name], expected)
            expected = q.detach() if dtype == F32 else rounded_by_chance(q.detach(), key, count, 0)
            if not isinstance(opt, fusedopt.LAMB):  # whose second pass reads what is stored
                assert_equal(p.detach(), expected)
            else:
                assert_close(p.detach().to(BF16), expected.to(BF16), 2)
    assert all(e.path == "fused" and "stochastic rounding" in e.reason for e in opt.explain())


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_the_plain_path_rounds_so_too(case: Case) -> None:
    params = some()
    opt = case.make(params, stochastic_rounding=True)
    give_gradients(params, 0)
    opt.step()
    other = copy.deepcopy(opt)
    copies = [p for group in other.param_groups for p in group["params"]]
    for its, run in ((params, opt), (copies, other)):
        give_gradients(its, 1)
        if run is other:
            with native():
                run.step()
        else:
            run.step()
    # The same numbers in float32 to the last digits, so the same roundings but for a few.
    total = sum(p.numel() for p in params)
    differ = sum((p != q).sum().item() for p, q in zip(params, copies, strict=True))
    assert differ <= (0.1 if case.cls is fusedopt.LAMB else 0.002) * total
    for p, q in zip(params, copies, strict=True):
        assert other.state[q]["step"] == opt.state[p]["step"] == 2
        assert other.state[q].keys() == opt.state[p].keys()


def test_it_is_unbiased() -> None:
    """Over 2 * 10^7 draws, by element and by step, and of operands that do not go together."""
    for elements, steps in ((10_000_000, 2), (1000, 10_000)):
        p = torch.full((elements,), 1.0, dtype=BF16, requires_grad=True)
        opt = fusedopt.SGD([p], lr=1.0, momentum=0.9, stochastic_rounding=True)
        ups, together = 0, 0
        share = 0.3  # of the distance between two bfloat16 numbers above 1
        for _ in range(steps):
            with torch.no_grad():
                p.fill_(1.0)
            opt.state[p]["momentum_buffer"] = torch.full_like(p, 1.0)
            # 0.9 + g = 1 + share * 2^-7, which moves the parameter by as much: both are rounded.
            p.grad = torch.full_like(p, 0.1, dtype=BF16)
            opt.param_groups[0]["momentum"] = 1.0 - float(p.grad[0]) + share * 2**-7
            opt.param_groups[0]["lr"] = -share * 2**-7 / (1 + share * 2**-7)
            opt.step()
            up, momentum_up = p.detach() > 1, opt.state[p]["momentum_buffer"] > 1
            ups += up.sum().item() + momentum_up.sum().item()
            together += (up & momentum_up).sum().item()
        draws = elements * steps
        for found, expected, n in ((ups, share, 2 * draws), (together, share**2, draws)):
            deviation = (found / n - expected) / (expected * (1 - expected) / n) ** 0.5
            assert abs(deviation) < 4, (found / n, expected)


def test_small_steps_are_not_lost() -> None:
    found = {}
    for by_chance in (False, True):
        p = torch.ones(10_000, dtype=BF16, requires_grad=True)
        opt = fusedopt.SGD([p], lr=1e-4, stochastic_rounding=by_chance)
        p.grad = torch.ones_like(p)
        for _ in range(500):
            opt.step()
        found[by_chance] = p.detach().float().mean().item()
    assert found[False] == 1.0
    assert found[True] == pytest.approx(0.95, abs=1e-3)


def run(params: list[Tensor], steps: range, **options: Any) -> Any:
    opt = fusedopt.AdamW(params, lr=0.01, stochastic_rounding=True, **options)
    for step in steps:
        give_gradients(params, step)
        opt.step()
    return opt


def test_threads_and_generators_change_nothing() -> None:
    shapes = [(300_000,), (17,)]
    found, threads = [], torch.get_num_threads()
    for n in (1, 2, 3):
        params = parameters(BF16, shapes)
        torch.set_num_threads(n)
        torch.manual_seed(n)
        before = torch.get_rng_state()
        try:
            run(params, range(2))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(params)
    for other in found[1:]:
        for p, q in zip(found[0], other, strict=True):
            assert_equal(p.detach(), q.detach())


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    params = some()
    opt = run(params, range(2))
    copies = [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]
    other = fusedopt.AdamW(copies)
    other.load_state_dict(saved(opt))
    for its, resumed in ((params, opt), (copies, other)):
        give_gradients(its, 5)
        resumed.step()
    for p, q in zip(params, copies, strict=True):
        assert_equal(q.detach(), p.detach())


def test_each_seed_and_parameter_has_bits_of_its_own() -> None:
    def moved(seed: int) -> list[Tensor]:
        params = [torch.ones(10_000, dtype=BF16, requires_grad=True) for _ in range(2)]
        opt = fusedopt.SGD(params, lr=1e-3, stochastic_rounding=True, rounding_seed=seed)
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        return [p.detach() < 1 for p in params]

    first, second = moved(0)
    assert all(torch.equal(a, b) for a, b in zip(moved(0), (first, second), strict=True))
    share = first.float().mean().item()
    for other in (second, *moved(1)):
        both = (first & other).float().mean().item()
        assert both == pytest.approx(share**2, rel=0.15)


def test_a_parameter_that_was_removed_is_not_kept() -> None:
    params = [nn.Parameter(torch.ones(3, dtype=BF16)) for _ in range(2)]
    opt = fusedopt.SGD([{"params": [p]} for p in params], lr=0.1, stochastic_rounding=True)
    give_gradients(params, 0)
    opt.step()
    removed = weakref.ref(params[0])
    del opt.param_groups[0], opt.state[params[0]], params[0]
    gc.collect()
    assert removed() is None
    params.append(nn.Parameter(torch.ones(3, dtype=BF16)))
    opt._indices[id(params[1])] = (removed, 7)  # as if it had the id of the other, which may come to be
    opt.add_param_group({"params": params[1]})
    give_gradients(params, 1)
    opt.step()
    other = fusedopt.SGD(params, lr=0.1, stochastic_rounding=True)
    other.step()
    assert opt.state[params[1]]["rounding_key"] == other.state[params[1]]["rounding_key"]


def test_steps_in_backward_have_the_same_bits() -> None:
    layers = [[parameters(BF16, [(32, 32)])[0], parameters(BF16, [(32, 8)])[0]] for _ in range(2)]
    opts = [fusedopt.AdamW(params, lr=1e-3, stochastic_rounding=True) for params in layers]
    for (a, _), opt in zip(layers, opts, strict=True):
        give_gradients([a], 0)
        opt.step()
        opt.zero_grad()
    with fusedopt.step_in_backward(opts[1]):
        for _ in range(3):
            for (a, b), opt in zip(layers, opts, strict=True):
                (torch.ones(2, 32, dtype=BF16) @ a @ b).square().mean().backward()
                opt.step()
                opt.zero_grad()
    for p, q in zip(*layers, strict=True):
        assert_equal(q.detach(), p.detach())


def test_a_run_that_begins_in_the_middle() -> None:
    """A momentum that is there has had its first step, though SGD keeps no count of its own."""
    params = some()
    opt = fusedopt.SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
    give_gradients(params, 0)
    opt.step()
    opt.param_groups[0]["stochastic_rounding"] = True
    buffers = [opt.state[p]["momentum_buffer"].float() for p in params]
    for p in params:
        p.grad = torch.full_like(p, 4.0)
    opt.step()
    for p, buffer in zip(params, buffers, strict=True):
        assert_close(opt.state[p]["momentum_buffer"], (0.9 * buffer + 2.0).to(BF16), 2)
        assert opt.state[p]["step"] == 2


def test_with_masters_it_is_the_states_that_are_rounded_so() -> None:
    params = some()
    opt = run(params, range(3), master_weights=True)
    wide = [p.detach().float().requires_grad_() for p in some()]
    exact = run(wide, range(0), state_dtype=BF16)
    for step in range(3):
        give_gradients(params, step)
        for p, q in zip(params, wide, strict=True):
            q.grad = p.grad.float()  # type: ignore[union-attr]
        exact.step()
    for p, q, master in zip(params, wide, opt.exact_parameters(), strict=True):
        assert_equal(master, q.detach())
        assert_equal(opt.state[p]["exp_avg_sq"], exact.state[q]["exp_avg_sq"])


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(F32, {}), (F16, {}), (F32, {"state_dtype": F32}), (BF16, {"master_weights": True, "state_dtype": F32})],
    ids=str,
)
def test_where_there_is_nothing_to_round_it_is_refused(dtype: torch.dtype, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stochastic_rounding is for what is stored in bfloat16"):
        fusedopt.AdamW(parameters(dtype), stochastic_rounding=True, **options)
    with pytest.raises(ValueError, match="rounding_seed"):
        fusedopt.AdamW(parameters(BF16), stochastic_rounding=True, rounding_seed="a")  # type: ignore[arg-type]


def test_fake_tensors_are_rounded_too() -> None:
    with FakeTensorMode():
        p = torch.ones(4, dtype=BF16, requires_grad=True)
        opt = fusedopt.AdamW([p], stochastic_rounding=True, ema_decay=0.9)
        p.grad = torch.ones_like(p)
        for _ in range(2):
            opt.step()
        assert opt.state[p]["average"].shape == p.shape


def test_the_portable_state_has_torchs_keys() -> None:
    params = some()
    opt = fusedopt.SGD(params, lr=0.1, momentum=0.9, stochastic_rounding=True, rounding_seed=3)
    give_gradients(params, 0)
    opt.step()
    portable = fusedopt.portable_state_dict(opt)
    assert portable["state"][0].keys() == {"momentum_buffer"}
    assert not {"stochastic_rounding", "rounding_seed"} & portable["param_groups"][0].keys()
