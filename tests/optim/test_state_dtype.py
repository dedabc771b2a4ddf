"""States of another dtype than their parameter's: fused, in the same arithmetic, kept by every way of saving them."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from cases import BF16, CASES, F16, F32, F64, Case, dtype_id
from stored_states import assert_close, assert_equal, give_gradients, may_be_stored_in, parameters, saved
from torch import Tensor

import fusedopt
from fusedopt import native

pytestmark = pytest.mark.one_torch

PARAMS = [F32, BF16, F16]
STATES = [F32, BF16]
# With weight decay, which is at work in every rule.
DECAY = [c for c in CASES if c.states and c.name.endswith("-decay")]
by_case = pytest.mark.parametrize("case", DECAY, ids=str)
by_case_and_state = pytest.mark.parametrize(
    ("case", "state_dtype"), [(c, s) for c in DECAY for s in STATES if may_be_stored_in(c, s)], ids=str
)
by_param = pytest.mark.parametrize("dtype", PARAMS, ids=dtype_id)


def stored(case: Case, opt: Any, p: Tensor) -> dict[str, Tensor]:
    return {name: opt.state[p][name] for name in case.states}


@pytest.mark.steps
@by_case_and_state
@by_param
def test_a_step_is_that_of_float32_rounded_to_what_it_is_stored_in(
    case: Case, dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    params = parameters(dtype)
    opt = case.make(params, state_dtype=state_dtype)
    for step in range(4):
        wide = [p.detach().float().clone().requires_grad_() for p in params]
        exact = case.make(wide)
        for group, own in zip(exact.param_groups, opt.param_groups, strict=True):
            group |= {name: copy.deepcopy(v) for name, v in own.items() if name not in ("params", "state_dtype")}
        give_gradients(params, step)
        for p, q in zip(params, wide, strict=True):
            q.grad = p.grad.float()
            if state := opt.state.get(p):
                exact.state[q] = {
                    name: v.float().clone() if name in case.states else copy.deepcopy(v) for name, v in state.items()
                }
        opt.step()
        exact.step()
        assert all(e.path == "fused" for e in opt.explain())
        for p, q in zip(params, wide, strict=True):
            for name, value in stored(case, opt, p).items():
                assert value.dtype == state_dtype
                assert_equal(value, exact.state[q][name].to(state_dtype))
            if not isinstance(opt, fusedopt.LAMB):  # whose second pass reads what is stored
                assert_equal(p.detach(), q.detach().to(dtype))
            else:
                assert_close(p.detach(), q.detach().to(dtype), 2)


# Without it: where gradient and decay cancel, rounding decides on the direction.
@pytest.mark.parametrize(
    ("case", "dtype", "state_dtype"),
    [
        (case, dtype, state_dtype)
        for case in CASES
        for dtype, state_dtype in [(F32, BF16), (BF16, F32), (F16, F32), (F16, BF16)]
        if case.states and not case.name.endswith(("-decay", "-fast")) and may_be_stored_in(case, state_dtype)
    ],
    ids=str,
)
def test_the_plain_path_computes_in_float32_too(case: Case, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    params = parameters(dtype)
    opt = case.make(params, state_dtype=state_dtype)
    for step in range(3):
        other = copy.deepcopy(opt)  # whose parameters are copies
        copies = [p for group in other.param_groups for p in group["params"]]
        for its in (params, copies):
            give_gradients(its, step)
        with native():
            other.step()
        opt.step()
        assert set(other.state) <= set(copies)  # nothing is left of what it computed with
        for p, q in zip(params, copies, strict=True):
            # Of LAMB the plain path takes norms before it stores the moments.
            assert_close(q.detach(), p.detach(), 2 if isinstance(opt, fusedopt.LAMB) else 1)
            for name, value in stored(case, other, q).items():
                assert value.dtype == state_dtype
                assert_close(value, opt.state[p][name])


@pytest.mark.steps
@pytest.mark.parametrize("dtypes", list(itertools.product(PARAMS, repeat=3)), ids=lambda d: "-".join(map(dtype_id, d)))
def test_states_set_by_hand_are_taken_as_they_are(dtypes: tuple[torch.dtype, ...]) -> None:
    param, mean, square = dtypes
    p = parameters(param, [(4099,)])[0]
    opt = fusedopt.AdamW([p], lr=0.1)
    opt.state[p] = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.full_like(p.detach(), 0.25, dtype=mean),
        "exp_avg_sq": torch.full_like(p.detach(), 0.5, dtype=square),
    }
    wide = p.detach().float().clone().requires_grad_()
    exact = fusedopt.AdamW([wide], lr=0.1)
    exact.state[wide] = {name: v.clone() if name == "step" else v.float().clone() for name, v in opt.state[p].items()}
    give_gradients([p], 0)
    wide.grad = p.grad.float()
    opt.step()
    exact.step()
    assert [e.path for e in opt.explain()] == ["fused"]
    for name, dtype in (("exp_avg", mean), ("exp_avg_sq", square)):
        assert_equal(opt.state[p][name], exact.state[wide][name].to(dtype))
    assert_equal(p.detach(), wide.detach().to(param))


@pytest.mark.steps
def test_float64_beside_other_dtypes_is_for_torch() -> None:
    p = parameters(F64, [(7,)])[0]
    opt = fusedopt.SGD([p], lr=0.1, momentum=0.9)
    opt.state[p] = {"momentum_buffer": torch.ones(7)}
    give_gradients([p], 0)
    expected = p.detach() - 0.1 * (0.9 + p.grad)
    opt.step()
    assert opt.explain()[0].reason == "float64 beside other dtypes"
    torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.steps
@by_case
def test_a_checkpoint_keeps_what_states_are_stored_in(case: Case) -> None:
    params = parameters(BF16)
    opt = case.make(params, state_dtype=F32)
    for step in range(2):
        give_gradients(params, step)
        opt.step()
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = case.make(copies)  # which learns of the dtype from the checkpoint
    other.load_state_dict(saved(opt))
    for p, q in zip(params, copies, strict=True):
        for name, value in stored(case, opt, p).items():
            assert_equal(other.state[q][name], value)
    for run, its in ((opt, params), (other, copies)):
        give_gradients(its, 5)
        run.step()
    for p, q in zip(params, copies, strict=True):
        assert_equal(q.detach(), p.detach())


@pytest.mark.steps
@by_case
def test_states_of_another_dtype_are_loaded_into_the_one_asked_for(case: Case) -> None:
    params = parameters(BF16)
    plain = case.make(params)
    give_gradients(params, 0)
    plain.step()
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = case.make(copies, state_dtype=F32)
    other.load_state_dict(saved(plain))
    for p, q in zip(params, copies, strict=True):
        for name, value in stored(case, plain, p).items():
            assert_equal(other.state[q][name], value.float())
    give_gradients(copies, 1)
    other.step()
    assert all(e.path == "fused" for e in other.explain())


@pytest.mark.steps
@pytest.mark.parametrize("case", [c for c in CASES if c.twin and c.states and c.name.endswith("-decay")], ids=str)
def test_torch_reads_the_states_in_its_own_dtype(case: Case) -> None:
    params = parameters(BF16)
    opt = case.make(params, state_dtype=F32)
    give_gradients(params, 0)
    opt.step()
    copies = [p.detach().clone().requires_grad_() for p in params]
    theirs = case.twin(copies, **case.kwargs)  # type: ignore[misc]
    theirs.load_state_dict(saved(opt))
    for p, q in zip(params, copies, strict=True):
        for name, value in stored(case, opt, p).items():
            assert_equal(theirs.state[q][name], value.to(BF16))
    give_gradients(copies, 1)
    theirs.step()


@pytest.mark.steps
def test_a_group_has_a_dtype_of_its_own() -> None:
    embedding, weight = parameters(BF16, [(9, 4), (4, 4)])
    groups = [{"params": [embedding], "state_dtype": F32}, {"params": [weight]}]
    opt = fusedopt.AdamW(groups, lr=0.1, state_dtype=BF16)
    give_gradients([embedding, weight], 0)
    opt.step()
    assert [opt.state[p]["exp_avg"].dtype for p in (embedding, weight)] == [F32, BF16]
    assert [e.reason.endswith(", states in float32") for e in opt.explain()] == [True, False]
    assert opt.memory() == {
        "parameters": 2 * (36 + 16),
        "gradients": 2 * (36 + 16),
        "step": 8,
        "exp_avg": 4 * 36 + 2 * 16,
        "exp_avg_sq": 4 * 36 + 2 * 16,
    }
    # Parameter and gradient in 2 bytes, read and, the parameter, written; two states read and written.
    assert opt.bytes_per_step() == (3 * 2 + 4 * 4) * 36 + (3 * 2 + 4 * 2) * 16


@pytest.mark.steps
def test_a_group_without_one_is_as_torchs() -> None:
    opt = fusedopt.AdamW(parameters(F32), lr=0.1)
    assert "state_dtype" not in opt.param_groups[0]
    assert set(opt.param_groups[0]) == set(torch.optim.AdamW(parameters(F32)).param_groups[0])


@pytest.mark.steps
@pytest.mark.parametrize("value", [F16, F64, "4bit", 16])
def test_an_unknown_dtype_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Invalid state_dtype"):
        fusedopt.AdamW(parameters(F32), state_dtype=value)


@pytest.mark.steps
@pytest.mark.parametrize("options", [{"differentiable": True}, {}], ids=["differentiable", "float64"])
def test_a_dtype_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    params = parameters(F32 if options else F64)
    with pytest.raises(ValueError, match="leave it out"):
        fusedopt.AdamW(params, state_dtype=BF16, **options)
    opt = fusedopt.AdamW(parameters(F32))
    with pytest.raises(ValueError, match="leave it out"):
        opt.add_param_group({"params": params, "state_dtype": BF16, **options})


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (F32, {"state_dtype": BF16}),
        (F32, {"state_dtype": "8bit"}),
        (F32, {"state_dtype": BF16, "stochastic_rounding": True}),
        (BF16, {"stochastic_rounding": True}),
        (BF16, {"stochastic_rounding": True, "state_dtype": F32}),
        (BF16, {}),
    ],
    ids=str,
)
def test_two_states_whose_difference_matters_are_not_rounded(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """But by torch's own way of storing them."""
    params = parameters(dtype, [(4096,)])
    if ("state_dtype" not in options and options) or options.get("state_dtype") in (BF16, "8bit"):
        with pytest.raises(ValueError, match=r"centered=True takes the root .* by state_dtype=torch\.float32"):
            fusedopt.RMSprop(params, centered=True, **options)
    else:
        fusedopt.RMSprop(params, centered=True, **options)


@pytest.mark.steps
def test_a_model_that_has_become_float64_is_refused_before_anything_is_made() -> None:
    p = parameters(F32, [(3,)])[0]
    opt = fusedopt.AdamW([p], lr=0.1, state_dtype=BF16)
    p.data = p.data.double()
    before = p.detach().clone()
    give_gradients([p], 0)
    with pytest.raises(ValueError, match=r"there is one of torch\.float64"):
        opt.step()
    assert p not in opt.state
    assert_equal(p.detach(), before)
