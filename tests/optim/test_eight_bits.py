"""States of 8 bits: codes that are the nearest, or unbiased, in every rule, refused by whatever would misread them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BF16, F16, F32, F64, ONE_OF_EACH, Case, dtype_id
from stored_states import assert_equal, give_gradients, parameters, saved
from torch import Tensor

import fusedopt
from fusedopt import _C, native
from fusedopt.optim._codecs import decoded, encoded, is_coded

# Blocks and what is left of one, more than one chunk, none, and a layout of its own.
SHAPES = [(3, 5), (256,), (16 * 1024 + 300,), (), (0, 4), (8, 33, 2, 2)]
by_case = pytest.mark.parametrize(
    "case", [c for c in ONE_OF_EACH if c.states and not c.kwargs.get("centered")], ids=str
)
by_chance = pytest.mark.parametrize("chance", [False, True], ids=["nearest", "chance"])


def some(dtype: torch.dtype = F32) -> list[Tensor]:
    params = parameters(dtype, SHAPES)
    params[-1] = params[-1].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    return params


def in_eight_bits(case: Case, params: list[Tensor], **options: Any) -> Any:
    return case.make(params, **({"state_dtype": "8bit", "min_8bit_size": 0} | options))


def numbers(*, signed: bool) -> Tensor:
    """Of every magnitude, in blocks and a rest."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40 * 256 + 57, generator=generator) * 10.0 ** (torch.rand(40 * 256 + 57, generator=generator) * -9)
    return x * 10.0 ** torch.linspace(-20, 20, 41).repeat_interleave(256)[: x.numel()] if signed else x.abs()


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_number_becomes_the_nearest_of_all_codes(signed: bool) -> None:
    x = numbers(signed=signed)
    codes, largest = encoded(x, signed=signed)
    assert codes.dtype == (torch.int8 if signed else torch.uint8)
    assert largest.shape == (41,)
    every = torch.arange(-127, 128, dtype=torch.int8) if signed else torch.arange(256).to(torch.uint8)
    for block, (piece, code) in enumerate(zip(x.split(256), codes.split(256), strict=True)):
        assert largest[block] == piece.abs().max()
        table = decoded((every, largest[block : block + 1])).double()
        assert (table.diff() > 0).all()
        assert table.abs().max() == pytest.approx(float(largest[block]), rel=1e-6)
        nearest = (piece.double()[:, None] - table).abs().amin(1)
        error = (piece.double() - decoded((code, largest[block : block + 1])).double()).abs()
        stays = torch.zeros_like(piece, dtype=torch.bool) if signed else (piece > 0) & (piece < table[1])
        assert (error <= nearest * (1 + 1e-5))[~stays].all()
        assert (code[stays] == 1).all()  # what others are divided by does not become 0
        well = piece.abs() > largest[block] / (16 if signed else 4096)
        assert (error <= piece.double().abs() * 2**-5 * 1.07)[well].all()


def test_what_is_not_finite_is_not_hidden_and_what_is_nothing_stays_so() -> None:
    for bad in (torch.nan, torch.inf):
        x = torch.ones(600)
        x[300] = bad
        back = decoded(encoded(x, signed=True))
        assert not back[256:512].isfinite().any() or not back[300].isfinite()
        assert_equal(back[:256], torch.ones(256))
    for signed in (True, False):
        for small in (0.0, 1e-39):
            codes, largest = encoded(torch.full((300,), small), signed=signed)
            assert (largest == 0).all()
            assert_equal(decoded((codes, largest)), torch.zeros(300))
        x = numbers(signed=signed)
        once = decoded(encoded(x, signed=signed))
        again, _ = encoded(once, signed=signed)
        assert_equal(again, encoded(x, signed=signed)[0])


def wide_run(case: Case, opt: Any, params: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """A run in float32 from what is stored now, with the gradients of now."""
    wide = [p.detach().float().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]
    exact = case.make(wide)
    for group, own in zip(exact.param_groups, opt.param_groups, strict=True):
        ours = ("params", "state_dtype", "min_8bit_size", "stochastic_rounding")
        group |= {name: copy.deepcopy(v) for name, v in own.items() if name not in ours}
    for p, q in zip(params, wide, strict=True):
        q.grad = p.grad.float()  # type: ignore[union-attr]
        exact.state[q] = {
            name: decoded(v) if is_coded(v) else copy.deepcopy(v)
            for name, v in opt.state[p].items()
            if name != "rounding_key"
        }
    return exact, wide


def assert_same_codes(actual: Any, expected: Any) -> None:
    """But for a few: without the instruction a multiply-add is rounded twice."""
    assert is_coded(actual)
    distance = (actual[0].int() - expected[0].int()).abs()
    assert not (distance > 1).any()
    assert (distance > 0).sum() <= 2 + 1e-3 * distance.numel()
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-6, atol=0)


@pytest.mark.steps
@pytest.mark.each_isa
@by_case
@by_chance
@pytest.mark.parametrize("path", ["fused", "torch"])
def test_a_step_is_that_of_float32_in_codes(case: Case, chance: bool, path: str) -> None:
    params = some()
    opt = in_eight_bits(case, params, stochastic_rounding=chance)
    for step in range(3):
        give_gradients(params, step)
        if step == 0:
            opt.step()  # whose first states are others
            continue
        exact, wide = wide_run(case, opt, params)
        for run in (opt, exact):
            if path == "torch":
                with native():
                    run.step()
            else:
                run.step()
        assert {e.path for e in opt.explain()} == {path}
        names = _C.STATES[opt._numbers(opt.param_groups[0])[0]]
        for p, q in zip(params, wide, strict=True):
            for name in case.states:
                value = opt.state[p][name]
                draw = None
                if chance:
                    draw = (opt.state[p]["rounding_key"], float(opt.state[p]["step"]), 2 + names.index(name))
                signed = value[0].dtype == torch.int8
                expected = encoded(exact.state[q][name], signed=signed, chance=draw)
                assert_same_codes(value, expected)
            if not isinstance(opt, fusedopt.LAMB):  # whose second pass reads what is stored
                assert_equal(p.detach(), q.detach())


@pytest.mark.steps
@by_case
def test_lamb_and_all_others_stay_near_float32(case: Case) -> None:
    params, wide = some(), some()
    runs = (in_eight_bits(case, params), case.make(wide))
    start = [p.detach().clone() for p in params]
    for step in range(5):
        for its, run in zip((params, wide), runs, strict=True):
            give_gradients(its, step)
            run.step()
    for p, q, at in zip(params, wide, start, strict=True):
        if p.numel() > 100:
            moved, error = (q - at).norm(), (p - q).norm()
            far = f"{error / moved:.2f} of the way from where float32 ends: right in float32, see Case.eight_bits"
            assert error <= case.eight_bits * moved, f"{case} with states of 8 bits ends {far}"


@pytest.mark.steps
def test_rounding_by_chance_is_unbiased() -> None:
    """Over 10^7 draws each of a signed number and of one that is never negative."""
    x = torch.full((10_000_000,), 0.37)
    x[::256] = 1.0  # the largest of each block
    p = torch.zeros_like(x, requires_grad=True)
    opt = fusedopt.Adam([p], lr=0.0, betas=(0.0, 0.0), state_dtype="8bit", stochastic_rounding=True)
    p.grad = x
    opt.step()
    for name, number in (("exp_avg", 0.37), ("exp_avg_sq", 0.37**2)):
        found = decoded(opt.state[p][name])
        few = found[1::256]
        low, high = found[x != 1].aminmax()
        assert low < number < high
        share = (number - low) / (high - low)
        others = found.view(-1)[x != 1]
        error = others.double().mean() - number
        sigma = float((high - low) * (share * (1 - share) / others.numel()) ** 0.5)
        assert abs(float(error)) < 4 * sigma + 1e-8, (error, sigma)
        assert 0.2 < float((few == low).float().mean()) / float(1 - share) < 5


@pytest.mark.steps
@by_chance
def test_threads_change_nothing_and_a_resumed_run_goes_on_bit_for_bit(chance: bool) -> None:
    found, threads = [], torch.get_num_threads()
    for n in (1, 3):
        params = parameters(BF16, [(300_000,), (17,)])
        torch.set_num_threads(n)
        try:
            opt = fusedopt.AdamW(params, master_weights=True, state_dtype="8bit", stochastic_rounding=chance)
            for step in range(4):
                if n == 3 and step == 2:
                    copies = [p.detach().clone().requires_grad_() for p in params]
                    other = fusedopt.AdamW(copies)
                    other.load_state_dict(saved(opt))
                    params, opt = copies, other
                give_gradients(params, step)
                opt.step()
        finally:
            torch.set_num_threads(threads)
        found.append([*(p.detach() for p in params), *opt.exact_parameters(), *opt.state[params[0]]["exp_avg_sq"]])
        assert not is_coded(opt.state[params[1]]["exp_avg"])  # of fewer than 4096
        assert "8 bits" in opt.explain()[0].reason
        assert opt.memory()["exp_avg"] == 300_000 + 1172 * 4 + 17 * 4
    for ours, theirs in zip(*found, strict=True):
        assert_equal(ours, theirs)


@by_case
def test_torchs_classes_refuse_the_state_and_read_the_portable_one(case: Case) -> None:
    params = some()
    opt = in_eight_bits(case, params)
    give_gradients(params, 0)
    opt.step()
    states = saved(opt)
    if case.twin is not None:
        for options in ({}, {"foreach": True}, {"fused": True}):
            copies = some()
            try:
                twin = case.twin(copies, **case.kwargs, **options)  # type: ignore[call-arg]
            except (TypeError, RuntimeError):
                continue  # it has no such form
            twin.load_state_dict(copy.deepcopy(states))
            give_gradients(copies, 1)
            with pytest.raises((AttributeError, TypeError, RuntimeError)):
                twin.step()
    copies = some()
    other = (case.twin or case.cls)(copies, **case.kwargs)
    other.load_state_dict(fusedopt.portable_state_dict(opt))
    for p, q in zip(params, copies, strict=True):
        for name in case.states:
            expected = decoded(opt.state[p][name])  # but for the last bit, where classic momentum is converted twice
            torch.testing.assert_close(other.state[q][name], expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=dtype_id)
def test_states_go_from_any_format_to_any_other(dtype: torch.dtype) -> None:
    formats: list[dict[str, Any]] = [{}, {"state_dtype": F32}, {"state_dtype": BF16}, {"state_dtype": "8bit"}]
    for first in formats:
        params = parameters(dtype, [(5000,), (7,)])
        opt = fusedopt.AdamW(params, **first)
        give_gradients(params, 0)
        opt.step()
        for second in formats:
            copies = parameters(dtype, [(5000,), (7,)])
            other = fusedopt.AdamW(copies, **second)
            portable = fusedopt.portable_state_dict(opt)
            other.load_state_dict(portable)
            for p, q in zip(params, copies, strict=True):
                ours, theirs = opt.state[p]["exp_avg"], other.state[q]["exp_avg"]
                assert is_coded(theirs) == (second == formats[3] and q.numel() >= 4096)
                wide = [decoded(v) if is_coded(v) else v.float() for v in (ours, theirs)]
                torch.testing.assert_close(wide[1], wide[0], rtol=0.04, atol=float(wide[0].abs().max()) * 2**-12)
            give_gradients(copies, 1)
            other.step()
            assert {e.path for e in other.explain()} == {"fused"}


def test_a_pair_of_tensors_of_ones_own_is_no_state_of_8_bits() -> None:
    params = parameters(F32, [(5000,)])
    opt = fusedopt.AdamW(params, state_dtype="8bit")
    give_gradients(params, 0)
    opt.step()
    pair = torch.ones(5000), torch.ones(20)
    opt.state[params[0]]["pair"] = pair
    give_gradients(params, 1)
    opt.step()
    other = fusedopt.AdamW(parameters(F32, [(5000,)]), state_dtype="8bit")
    for states in (opt.state_dict(), fusedopt.portable_state_dict(opt)):
        other.load_state_dict(states)
        (loaded,) = other.state.values()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded["pair"], pair, strict=True))
        assert is_coded(loaded["exp_avg"])
        assert {e.path for e in opt.explain()} == {"fused"}


def test_classic_momentum_is_converted_by_the_largest_magnitudes() -> None:
    params = parameters(F32, [(5000,)])
    opt = fusedopt.SGD(params, lr=0.5, momentum=0.9, momentum_form="classic", state_dtype="8bit")
    give_gradients(params, 0)
    opt.step()
    copies = parameters(F32, [(5000,)])
    other = fusedopt.SGD(copies, lr=0.5, momentum=0.9, state_dtype="8bit")
    other.load_state_dict(saved(opt))
    ours, theirs = (o.state[p[0]]["momentum_buffer"] for o, p in ((opt, params), (other, copies)))
    assert_equal(theirs[0], ours[0])
    assert_equal(theirs[1], ours[1] * 2)


def test_what_cannot_be_is_refused() -> None:
    wide = [torch.ones(5000, requires_grad=True)]
    with pytest.raises(ValueError, match="state_dtype: '4bit'"):
        fusedopt.AdamW(wide, state_dtype="4bit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_8bit_size: -1"):
        fusedopt.AdamW(wide, state_dtype="8bit", min_8bit_size=-1)
    with pytest.raises(ValueError, match="float64"):
        fusedopt.AdamW([torch.ones(5000, dtype=F64, requires_grad=True)], state_dtype="8bit")
