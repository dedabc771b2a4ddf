"""Master weights: a run in half precision is that in float32, bit for bit, and nothing of it is lost anywhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import BF16, BY_NAME, CASES, F16, F32, F64, HALVES, ONE_OF_EACH, Case, dtype_id
from stored_states import assert_equal, give_gradients, parameters, saved
from torch import Tensor

import fusedopt
from fusedopt import native
from fusedopt.optim._codecs import joined, split

pytestmark = pytest.mark.steps
by_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
by_dtype = pytest.mark.parametrize("dtype", HALVES, ids=dtype_id)


def with_masters(case: Case, params: list[Tensor], **options: Any) -> Any:
    return case.make(params, master_weights=True, **({"state_dtype": F32} | options))


def assert_nearest(param: Tensor, exact: Tensor) -> None:
    """Half way between two it may be either."""
    error = (param.detach().double() - exact.double()).abs()
    for to in (torch.inf, -torch.inf):
        other = torch.nextafter(param.detach(), torch.full_like(param, to))
        assert (error <= (other.double() - exact.double()).abs()).all()


def test_every_float32_is_split_into_two_parts_of_its_own() -> None:
    bits = torch.arange(-(2**31), 2**31, 65_521, dtype=torch.int64)
    ends = torch.tensor([0x7FFF, 0x8000, 0x8001, 0x17FFF, 0x18000, 0x18001, 0x7F7FFFFF, 0x7F800000])
    bits = torch.cat([bits, *(high * 2**16 + ends % 2**16 for high in (0, 0x3F80, 0x3F81)), ends, ends - 2**31])
    exact = bits.to(torch.int32).view(torch.float32)
    upper, rest = split(exact)
    whole = upper.isfinite() & (upper != 0)  # what is rounded to 0 or to infinity is that
    assert_equal(joined(upper, rest), torch.where(whole, exact, upper.float()))
    assert whole[(exact.abs() > 2.0**-133) & (exact.abs() < 3.38e38)].all()
    finite = exact[exact.abs() < torch.finfo(BF16).max]
    assert_nearest(split(finite)[0], finite)
    assert upper[exact.isnan()].isnan().all()


@pytest.mark.each_isa
@by_case
@by_dtype
def test_the_masters_are_the_parameters_of_a_run_in_float32(case: Case, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    wide = [p.detach().float().requires_grad_() for p in params]
    ours, exact = with_masters(case, params), case.make(wide)
    for step in range(5):
        give_gradients(params, step)
        for p, q in zip(params, wide, strict=True):
            q.grad = p.grad.float()
        ours.step()
        exact.step()
    assert all(e.path == "fused" for e in ours.explain())
    for p, q, master in zip(params, wide, ours.exact_parameters(), strict=True):
        assert_equal(master, q.detach())
        assert_nearest(p, master)
        for name in case.states:
            assert_equal(ours.state[p][name], exact.state[q][name])


# Of each class one without decay: where gradient and decay cancel, rounding decides on the direction.
PLAIN = {c.cls: c for c in CASES if not c.name.endswith(("-decay", "-fast"))}


@pytest.mark.parametrize("case", PLAIN.values(), ids=str)
@by_dtype
def test_the_plain_path_has_them_too(case: Case, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    opt = with_masters(case, params)
    other = copy.deepcopy(opt)
    copies = [p for group in other.param_groups for p in group["params"]]
    for step in range(4):
        for its in (params, copies):
            give_gradients(its, step)
        with native():
            other.step()
        opt.step()
    assert set(other.state) == set(copies)
    for p, q, ours, plain in zip(params, copies, opt.exact_parameters(), other.exact_parameters(), strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-5, atol=1e-5)
        assert_nearest(q, plain)
        assert other.state[q].keys() == opt.state[p].keys()


@by_dtype
def test_a_parameter_that_is_set_counts(dtype: torch.dtype) -> None:
    (p,) = parameters(dtype, [(4099,)])
    opt = fusedopt.AdamW([p], lr=1e-4, master_weights=True)
    give_gradients([p], 0)
    opt.step()
    with torch.no_grad():
        p[::2] = 0.75
        p[::3] = 0.0
        p[1::3] *= -0.0
    before = opt.exact_parameters()[0]
    assert_nearest(p, before)
    give_gradients([p], 1)
    opt.step()
    assert (opt.exact_parameters()[0] - before).abs().max() < 3e-4
    with native():
        opt.step()
    assert (opt.exact_parameters()[0] - before).abs().max() < 5e-4
    with torch.no_grad():
        p[0], p[1] = torch.inf, -torch.inf
    assert opt.exact_parameters()[0][:2].tolist() == [torch.inf, -torch.inf]
    for _ in range(2):  # pruned weights
        with torch.no_grad():
            p.mul_(torch.arange(4099) % 5 > 0)
        give_gradients([p], 2)
        opt.step()
    assert p[2:].isfinite().all()


@by_dtype
def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    (p,) = parameters(dtype, [(40,)])
    opt = fusedopt.SGD([p], lr=1.0, master_weights=True)
    p.grad = torch.ones_like(p)
    p.grad[1], p.grad[2], p.grad[3] = torch.nan, torch.inf, -torch.inf
    opt.step()
    for values in (p.detach(), opt.exact_parameters()[0]):
        assert values[1].isnan()
        assert values[2:4].tolist() == [-torch.inf, torch.inf]
        assert values[4:].isfinite().all()


@by_dtype
@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb-decay"])
def test_a_resumed_run_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    params = parameters(dtype)
    opt = with_masters(case, params)
    for step in range(2):
        give_gradients(params, step)
        opt.step()
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = case.make(copies)  # which learns of the masters from the checkpoint
    other.load_state_dict(saved(opt))
    for run, its in ((opt, params), (other, copies)):
        give_gradients(its, 5)
        run.step()
    for p, q, ours, theirs in zip(params, copies, opt.exact_parameters(), other.exact_parameters(), strict=True):
        assert_equal(q.detach(), p.detach())
        assert_equal(theirs, ours)


@pytest.mark.parametrize(("before", "after"), [(BF16, F16), (F16, BF16)], ids=["to float16", "to bfloat16"])
def test_beside_parameters_in_the_other_half_these_count(before: torch.dtype, after: torch.dtype) -> None:
    params = parameters(before)
    opt = fusedopt.AdamW(params, lr=0.01, master_weights=True)
    give_gradients(params, 0)
    opt.step()
    exact = opt.exact_parameters()
    copies = [p.to(after).requires_grad_() for p in exact]
    other = fusedopt.AdamW(copies, lr=0.01, master_weights=True)
    other.load_state_dict(saved(opt))
    for found, q in zip(other.exact_parameters(), copies, strict=True):
        assert_equal(found, q.detach().float())


def test_a_run_without_them_gets_them() -> None:
    params = parameters(BF16)
    opt = fusedopt.AdamW(params, lr=0.01)
    give_gradients(params, 0)
    opt.step()
    before = [opt.state[p]["exp_avg"].clone() for p in params]
    opt.param_groups[0]["master_weights"] = True
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    for p, mean in zip(params, before, strict=True):
        assert_equal(opt.state[p]["exp_avg"], (mean.float() * 0.9).to(BF16))
        assert opt.state[p]["master_rest"].dtype == BF16
    assert all(e.reason.endswith(", master weight") for e in opt.explain())


@by_dtype
def test_without_them_the_parameters_count(dtype: torch.dtype) -> None:
    """Also of a state that still has them."""
    params = parameters(dtype)
    opt = fusedopt.AdamW(params, lr=0.01, master_weights=True, state_dtype=F32)
    give_gradients(params, 0)
    opt.step()
    opt.param_groups[0]["master_weights"] = False
    other = copy.deepcopy(opt)
    copies = other.param_groups[0]["params"]
    give_gradients(copies, 1)
    give_gradients(params, 1)
    opt.step()
    with native():
        other.step()
    for p, q, exact in zip(params, copies, opt.exact_parameters(), strict=True):
        assert_equal(exact, p.detach().float())
        torch.testing.assert_close(q.detach(), p.detach(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_run_with_them_goes_on_in_float32() -> None:
    params = parameters(BF16)
    opt = fusedopt.AdamW(params, lr=0.01, master_weights=True, stochastic_rounding=True, ema_decay=0.9)
    give_gradients(params, 0)
    opt.step()
    wide = [p.requires_grad_() for p in opt.exact_parameters()]
    other = fusedopt.AdamW(wide, ema_decay=0.5)
    other.load_state_dict(saved(opt))
    assert not {"master_weights", "stochastic_rounding"} & other.param_groups[0].keys()
    assert other.param_groups[0]["ema_decay"] == 0.5
    give_gradients(wide, 1)
    other.step()
    assert all(e.path == "fused" for e in other.explain())


def test_torch_goes_on_from_the_parameters() -> None:
    params = parameters(BF16)
    opt = fusedopt.AdamW(params, lr=0.01, master_weights=True)
    give_gradients(params, 0)
    opt.step()
    portable = fusedopt.portable_state_dict(opt)
    copies = [p.detach().clone().requires_grad_() for p in params]
    theirs = torch.optim.AdamW(copies)
    theirs.load_state_dict(portable)
    assert theirs.state[copies[0]].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert "master_weights" not in portable["param_groups"][0]
    give_gradients(copies, 1)
    theirs.step()


def test_bytes_and_words() -> None:
    params = [*parameters(BF16, [(9, 4)]), *parameters(F16, [(4, 4)])]
    opt = fusedopt.AdamW(params, lr=0.1, master_weights=True)
    give_gradients(params, 0)
    opt.step()
    sizes = opt.memory()
    assert (sizes["master_rest"], sizes["master"]) == (2 * 36, 4 * 16)
    # Parameter with its rest read and written, gradient read, two states read and written.
    assert opt.bytes_per_step() == (2 * 4 + 2 + 4 * 2) * 36 + (2 * 6 + 2 + 4 * 2) * 16
    assert all(e.reason.endswith(", master weight") for e in opt.explain())


@pytest.mark.parametrize("dtype", [F32, F64], ids=dtype_id)
def test_other_parameters_are_refused(dtype: torch.dtype) -> None:
    message = "which are their own masters" if dtype == F32 else "master_weights is for parameters of"
    params, opt = parameters(dtype, [(3,)]), fusedopt.AdamW(parameters(BF16), master_weights=True)
    with pytest.raises(ValueError, match=message):
        fusedopt.AdamW(params, master_weights=True)
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": params})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": params, "master_weights": False})
    with pytest.raises(ValueError, match="differentiable"):
        fusedopt.AdamW(parameters(BF16), master_weights=True, differentiable=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'master_weight'"):
        fusedopt.AdamW(parameters(BF16), master_weight=True)


@by_dtype
def test_a_skipped_step_leaves_them(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    opt = fusedopt.AdamW(params, lr=0.1, master_weights=True, fused=True)
    give_gradients(params, 0)
    opt.step()
    before = [*map(Tensor.clone, opt.exact_parameters())]
    opt.found_inf, opt.grad_scale = torch.ones(1), torch.ones(1)
    opt.step()
    for p, q in zip(opt.exact_parameters(), before, strict=True):
        assert_equal(p, q)


def test_steps_in_backward_are_the_same() -> None:
    weights = [parameters(BF16, [(64, 64)])[0] for _ in range(2)]
    opts = [fusedopt.AdamW([w], lr=1e-3, master_weights=True) for w in weights]
    with fusedopt.step_in_backward(opts[1]):
        for _ in range(3):
            for w, opt in zip(weights, opts, strict=True):
                (torch.ones(2, 64, dtype=BF16) @ w).square().mean().backward()
                opt.step()
                opt.zero_grad()
    rests = [opt.state[w]["master_rest"].view(torch.int16).tolist() for w, opt in zip(weights, opts, strict=True)]
    assert rests[0] == rests[1]
    assert_equal(weights[1].detach(), weights[0].detach())
    assert any(map(any, rests[0]))


def test_a_copy_and_a_pickle_have_them() -> None:
    params = parameters(BF16)
    opt = fusedopt.AdamW(params, lr=0.01, master_weights=True)
    give_gradients(params, 0)
    opt.step()
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        for p, q in zip(opt.exact_parameters(), other.exact_parameters(), strict=True):
            assert_equal(q, p)
