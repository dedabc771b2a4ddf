"""What is peculiar to NAdam and ASGD: states that are one number, beside the step count."""

from __future__ import annotations

import copy
from typing import Any

import gpu
import pytest
import torch
from cases import BF16, BY_NAME, F16, F32, F64, Case, dtype_id
from pair import Pair, make_params, make_twin, set_grads
from torch import Tensor
from torch.optim import Optimizer

import fusedopt

pytestmark = pytest.mark.steps
CASES = [BY_NAME["nadam-decay"], BY_NAME["asgd-averages-decay"]]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def paths(opt: Optimizer) -> set[str]:
    return {e.path for e in opt.explain()}  # type: ignore[attr-defined]


@each_case
def test_scalars_that_differ_between_parameters_of_one_step_count(case: Case) -> None:
    pair = Pair(case, [(3,), (3,), (20_000,), (3,), ()])
    pair.step(0)
    pair.step(1)
    for opt, params in pair:
        for i, p in enumerate(params[:4]):
            for name in case.scalars:
                opt.state[p][name].fill_(0.5 / (1 + i % 3))  # two are alike
    for i in range(2, 5):
        pair.step(i)
        assert paths(pair.ours) == {"fused"}


@each_case
def test_parameters_that_start_one_after_the_other(case: Case) -> None:
    pair = Pair(case, [(3,), (4, 5), (), (6,)])
    for i, without in enumerate([(1, 3), (1,), (0,), (), (2,), ()]):
        pair.step(i, without)
        assert paths(pair.ours) <= {"fused", "none"}


@each_case
def test_a_rounding_of_its_own_where_one_is_float64(case: Case) -> None:
    """Of equal numbers in float32 and in float64 other ones become."""
    shapes = [(7,)] * 3
    pair = Pair(case, shapes)
    pair.step(0)
    for opt, params in pair:
        for p in params:
            for name in case.scalars:
                opt.state[p][name].fill_(0.75)
        state = opt.state[params[1]]
        state |= {name: state[name].double() for name in case.scalars}
    for i in range(1, 4):
        pair.step(i)
        assert paths(pair.ours) == {"fused"}
    first, wide, last = ({name: pair.ours.state[p][name] for name in case.scalars} for p in pair.params[0])
    for name in case.scalars:
        assert (first[name].dtype, wide[name].dtype) == (F32, F64)
        assert first[name] == last[name] == wide[name].float()
    assert any(first[name].double() != wide[name] for name in case.scalars)


@each_case
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=dtype_id)
def test_a_resumed_run_goes_on_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    """torch would round what it loads to half precision."""
    runs = []
    for resumes in (False, True):
        params = make_params(dtypes=(dtype,))
        opt = case.make(params)
        for i in range(6):
            if resumes and i == 3:
                saved = copy.deepcopy(opt.state_dict())
                opt = case.make(params)
                opt.load_state_dict(saved)
                for p in params:
                    assert {opt.state[p][name].dtype for name in case.scalars} == {F32}
                    assert {opt.state[p][name].device for name in case.scalars} == {opt.state[p]["step"].device}
            set_grads(params, i)
            opt.step()
        assert paths(opt) == {"fused"}
        runs.append([*params, *(v for p in params for v in opt.state[p].values())])
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@each_case
def test_what_torch_has_rounded_is_loaded_as_float32(case: Case) -> None:
    params, twins = (make_params(dtypes=(BF16,)) for _ in range(2))
    theirs = make_twin(case, twins)
    for i in range(2):
        set_grads(twins, i)
        theirs.step()
    for p, q in zip(params, twins, strict=True):
        p.data.copy_(q)
    theirs.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert {theirs.state[q][name].dtype for q in twins for name in case.scalars} == {BF16}
    ours = case.make(params)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert {ours.state[p][name].dtype for p in params for name in case.scalars} == {F32}
    for opt, own in ((ours, params), (theirs, twins)):
        set_grads(own, 2)
        opt.step()
    assert paths(ours) == {"fused"}
    torch.testing.assert_close(params, twins, rtol=2e-2, atol=2e-2)


@each_case
@pytest.mark.parametrize("state_dtype", [F32, BF16], ids=dtype_id)
def test_of_a_parameter_without_dimensions_they_are_no_elements(case: Case, state_dtype: torch.dtype) -> None:
    dtype = BF16 if state_dtype == F32 else F32
    params = make_params([()], dtypes=(dtype,))
    opt = case.make(params, state_dtype=state_dtype)
    for i in range(2):
        if i:
            opt.load_state_dict(opt.state_dict())
        set_grads(params, i)
        opt.step()
        with fusedopt.native():
            opt.step()
        state = opt.state[params[0]]
        assert {state[name].dtype for name in case.states} == {state_dtype}
        assert {state[name].dtype for name in case.scalars} == {F32}
    opt.step()
    (explanation,) = opt.explain()  # type: ignore[attr-defined]
    assert f"states in {dtype_id(state_dtype)}" in explanation.reason
    assert explanation.reason.count("float") == (2 if state_dtype == BF16 else 1) - (state_dtype == BF16)


@each_case
def test_memory_has_them_by_name(case: Case) -> None:
    params = make_params([(3,), (5,)])
    opt = case.make(params)
    set_grads(params, 0)
    opt.step()
    found = opt.memory()  # type: ignore[attr-defined]
    assert {name: found[name] for name in case.scalars} == dict.fromkeys(case.scalars, 2 * 4)


ODD: dict[str, Any] = {
    "half": lambda t: t.to(BF16),
    "integer": lambda t: torch.ones((), dtype=torch.int64, device=t.device),
    "number": lambda t: 1.0,
}


@each_case
@pytest.mark.parametrize("kind", ODD)
def test_odd_ones_are_torchs(case: Case, kind: str) -> None:
    name = case.scalars[-1]
    pair = Pair(case)
    pair.step(0)
    for opt, params in pair:
        opt.state[params[1]][name] = ODD[kind](opt.state[params[1]][name])
    set_grads(pair.params[0], 1)
    set_grads(pair.params[1], 1)
    try:
        pair.theirs.step()
    except Exception as error:
        before = [p.detach().clone() for p in pair.params[0]]
        with pytest.raises(type(error)):
            pair.ours.step()
        torch.testing.assert_close([p.detach() for p in pair.params[0]], before, rtol=0, atol=0)
        return
    pair.ours.step()
    pair.compare()
    assert [e.path for e in pair.ours.explain()] == ["fused", "torch", "fused"]


@each_case
def test_a_missing_one_is_torchs_error(case: Case) -> None:
    params = make_params()
    strided = torch.ones(8, device=gpu.TEST_DEVICE)[::2].requires_grad_()  # torch's as well, and before
    params = [strided, *params]
    opt = case.make([{"params": [p]} for p in params])
    set_grads(params, 0)
    opt.step()
    del opt.state[params[1]][case.scalars[0]]
    before = [p.detach().clone() for p in params]
    with pytest.raises(KeyError, match=case.scalars[0]):
        opt.step()
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)


@each_case
def test_one_that_two_parameters_share_is_torchs(case: Case) -> None:
    """It advances twice in a step."""
    pair = Pair(case)
    pair.step(0)
    for opt, params in pair:
        opt.state[params[1]] |= {name: opt.state[params[0]][name] for name in case.scalars}
    for opt, params in pair:
        opt.param_groups[0]["foreach"] = False
        set_grads(params, 1)
        opt.step()
    pair.compare()
    assert [e.path for e in pair.ours.explain()] == ["torch", "torch", "fused"]


@each_case
@pytest.mark.skipif(not gpu.AVAILABLE, reason="no GPU; make test runs this on the CPU in a build of its own")
def test_a_gpu_advances_those_of_each_parameter(case: Case) -> None:
    """More parameters than a block has threads, each with scalars of its own, and one that has no gradient at times."""
    params, twins = (make_params([(2,)] * 700) for _ in range(2))
    ours, theirs = case.make(params, capturable=True), make_twin(case, twins)
    for i in range(5):
        for opt, own in ((ours, params), (theirs, twins)):
            set_grads(own, i, without=(i, 600) if i < 4 else ())
            opt.step()
        if i == 1:
            for opt, own in ((ours, params), (theirs, twins)):
                for k, p in enumerate(own):
                    for name in case.scalars:
                        if opt.state.get(p):
                            opt.state[p][name].fill_(1 / (2 + k % 50))
    assert paths(ours) == {"fused"}
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.state[p], theirs.state[q], rtol=1e-5, atol=1e-5, check_device=False)


def test_a_rate_follows_its_schedule_one_step_later() -> None:
    """torch's ASGD makes the next step's eta at the end of a step; so does ours, from a tensor too."""
    found: list[list[Tensor]] = []
    for lr in (0.5, torch.tensor(0.5, device=gpu.TEST_DEVICE)):
        params = make_params()
        opt = fusedopt.ASGD(params, lr=lr, lambd=0.0)
        rates = []
        for i in range(4):
            set_grads(params, i)
            before = params[0].detach().clone()
            opt.step()
            rates.append(((before - params[0]) / params[0].grad).mean().item())
            opt.param_groups[0]["lr"] /= 2
        assert rates == pytest.approx([0.5, 0.5, 0.25, 0.125], rel=1e-3)
        found.append([p.detach() for p in params])
    torch.testing.assert_close(*found)


def test_the_largest_gradients_do_not_overflow_nadam() -> None:
    """Their squares do, and nothing moves; twice the average and the gradient together would be infinite as well."""
    largest = torch.finfo(F32).max
    pair = Pair(BY_NAME["nadam"], [(3,)])
    for _ in range(3):
        for opt, params in pair:
            params[0].grad = torch.tensor([largest, -largest, 0.5], device=gpu.TEST_DEVICE)
            opt.step()
        pair.compare()
    assert paths(pair.ours) == {"fused"}
    assert pair.params[0][0].isfinite().all()


def test_until_asgd_averages_ax_is_the_parameter_even_where_that_is_infinite() -> None:
    params = make_params([(3,)])
    opt = fusedopt.ASGD(params, lr=0.1)
    params[0].data[1] = torch.inf
    for i in range(3):
        set_grads(params, i)
        opt.step()
        torch.testing.assert_close(opt.state[params[0]]["ax"], params[0].detach(), rtol=0, atol=0)
    assert paths(opt) == {"fused"}
