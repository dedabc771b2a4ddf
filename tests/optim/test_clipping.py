"""`max_grad_norm`: clipping inside the step equals torch's clipping before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BY_NAME, ONE_OF_EACH, Case
from pair import make_params, make_twin, set_grads
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

import fusedopt

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]

OF_TORCH = [case for case in ONE_OF_EACH if case.twin]


def compare(ours: Optimizer, theirs: Optimizer, a: list[Tensor], b: list[Tensor]) -> None:
    torch.testing.assert_close(a, b, equal_nan=True)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(dict(ours.state.get(p, {})), dict(theirs.state.get(q, {})), equal_nan=True)


def make(kind: str) -> tuple[list[Tensor], list[dict[str, Any]]]:
    dtypes = (torch.float32, torch.complex64) if kind == "complex" else (torch.float32,)
    params = make_params([(3, 4), (5,), (2, 3), (), (0,)], dtypes)
    if kind == "strided":
        params[1] = nn.Parameter(torch.arange(10.0)[::2])
    return params, [{"params": params[:2]}, {"params": params[2:], "lr": 0.3}]


@pytest.mark.parametrize("case", OF_TORCH, ids=str)
@pytest.mark.parametrize("kind", ["fused", "strided", "complex"])
@pytest.mark.parametrize("limit", [0.3, 1e4, 0.0, float("inf")])
def test_equals_clipping_before_the_step(case: Case, kind: str, limit: float) -> None:
    (ours, our_groups), (theirs, their_groups) = make(kind), make(kind)
    opt, twin = case.make(our_groups, max_grad_norm=limit), make_twin(case, their_groups)
    for i in range(3):
        set_grads(ours, i)
        set_grads(theirs, i)
        grads = [p.grad.clone() for p in ours]
        norm = clip_grad_norm_(theirs, limit)
        opt.step()
        twin.step()
        compare(opt, twin, ours, theirs)
        torch.testing.assert_close(opt.grad_norm, norm)
        assert all(map(torch.equal, grads, [p.grad for p in ours]))
    paths = {e.path for e in opt.explain()}
    assert paths == ({"fused"} if kind == "fused" else {"fused", "torch"})


@pytest.mark.parametrize("case", OF_TORCH, ids=str)
@pytest.mark.parametrize("kind", ["fused", "strided"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_norm_that_is_not_finite(case: Case, kind: str, value: float, where: int) -> None:
    (ours, our_groups), (theirs, their_groups) = make(kind), make(kind)
    opt, twin = case.make(our_groups, max_grad_norm=0.5), make_twin(case, their_groups)
    for params in ours, theirs:
        set_grads(params, 0)
        params[where].grad.view(-1)[0] = value
    norm = clip_grad_norm_(theirs, 0.5)
    opt.step()
    twin.step()
    compare(opt, twin, ours, theirs)
    torch.testing.assert_close(opt.grad_norm, norm, equal_nan=True)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_grad_norm(case: Case) -> None:
    params = make_params([(3,), (4,)], (torch.float64, torch.float32))
    opt = case.make(params, max_grad_norm=1.0)
    assert opt.grad_norm is None
    params[0].grad = torch.full_like(params[0], 2.0)
    params[1].grad = torch.full_like(params[1], 1.0)
    opt.step()
    assert isinstance(opt.grad_norm, Tensor)
    assert (opt.grad_norm.shape, opt.grad_norm.dtype, opt.grad_norm.device) == ((), torch.float64, params[0].device)
    assert opt.grad_norm == 4
    params[0].grad = None
    opt.step()
    assert opt.grad_norm == 2
    opt.zero_grad()
    opt.step()
    assert opt.grad_norm == 0


def test_grad_norm_without_clipping_is_none() -> None:
    params = make_params()
    opt = fusedopt.AdamW(params)
    set_grads(params, 0)
    opt.step()
    assert opt.grad_norm is None


def test_limit_changed_between_steps() -> None:
    params, expected = make_params(), make_params()
    opt, twin = fusedopt.SGD(params, lr=0.1, max_grad_norm=0.5), torch.optim.SGD(expected, lr=0.1)
    for i, limit in enumerate([0.5, 0.1, 2.0]):
        opt.defaults["max_grad_norm"] = limit
        set_grads(params, i)
        set_grads(expected, i)
        clip_grad_norm_(expected, limit)
        opt.step()
        twin.step()
        torch.testing.assert_close(params, expected)


@pytest.mark.parametrize("limit", [0.5, 1e4])
def test_half_precision_norm_does_not_overflow(limit: float) -> None:
    p = nn.Parameter(torch.zeros(1000, dtype=torch.float16))
    opt = fusedopt.SGD([p], lr=1.0, max_grad_norm=limit)
    p.grad = torch.full_like(p, 300.0)  # its square is beyond float16
    opt.step()
    norm = 300 * 1000**0.5
    assert opt.grad_norm is not None
    torch.testing.assert_close(opt.grad_norm.item(), norm)
    torch.testing.assert_close(p.float(), torch.full((1000,), -300.0 * min(1.0, limit / norm)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("limit", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("kind", ["fused", "strided"])
def test_lamb_clips_by_the_rule_of_apex(limit: float, kind: str) -> None:
    """Gradients are divided by norm / limit where the norm is above the limit, without an epsilon."""
    case = BY_NAME["lamb-no-clip-decay"]
    (ours, our_groups), (theirs, their_groups) = make(kind), make(kind)
    opt, twin = case.make(our_groups, max_grad_norm=limit), make_twin(case, their_groups)
    for i in range(3):
        set_grads(ours, i)
        set_grads(theirs, i)
        norm = torch.cat([p.grad.flatten() for p in theirs]).double().norm().item()
        for p in theirs:
            p.grad *= limit / norm if norm > limit else 1.0
        opt.step()
        twin.step()
        compare(opt, twin, ours, theirs)
        torch.testing.assert_close(opt.grad_norm.item(), norm)


def test_small_gradients_show_torchs_epsilon() -> None:
    p, q = (nn.Parameter(torch.zeros(4, dtype=torch.float64)) for _ in range(2))
    opt, twin = fusedopt.SGD([p], lr=1.0, max_grad_norm=1e-6), torch.optim.SGD([q], lr=1.0)
    p.grad, q.grad = torch.full_like(p, 1e-6), torch.full_like(q, 1e-6)
    clip_grad_norm_([q], 1e-6)
    opt.step()
    twin.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def test_lamb_has_no_epsilon_where_torch_has_one() -> None:
    # Gradients so small that torch's 1e-6 beside the norm would matter.
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    opt = fusedopt.LAMB([p], max_grad_norm=1e-6, weight_decay=0.0, eps=1e-12)
    p.grad = torch.full_like(p, 1e-6)
    opt.step()
    torch.testing.assert_close(opt.state[p]["exp_avg"], torch.full_like(p, 0.1 * 5e-7), rtol=1e-12, atol=0)
    assert opt.defaults["max_grad_norm"] == 1e-6
    assert fusedopt.LAMB([p]).defaults["max_grad_norm"] == 1.0


def test_sparse_gradients_are_part_of_the_norm() -> None:
    params = make_params([(6, 2), (3,)])
    before = [p.detach().clone() for p in params]
    opt = fusedopt.SGD(params, lr=1.0, max_grad_norm=1.0)
    # Not coalesced: row 1 is 2.
    twice = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2, 2), (6, 2), check_invariants=True)
    params[0].grad, params[1].grad = twice, torch.ones(3)
    opt.step()
    norm = (2 * 2**2 + 3) ** 0.5
    torch.testing.assert_close(opt.grad_norm.item(), norm)
    torch.testing.assert_close(before[0] - params[0].detach(), twice.to_dense() / norm)
    torch.testing.assert_close(before[1] - params[1].detach(), torch.ones(3) / norm)
