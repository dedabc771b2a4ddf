"""LAMB, which torch has not: the reference on numbers worked out by hand, then every flag of ours against it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, F16, F32, F64, HALVES, dtype_id
from closeness import clone
from reference import ReferenceLAMB
from torch import Tensor

from fusedopt import LAMB, native

pytestmark = [pytest.mark.steps, pytest.mark.on_gpu]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
CHUNK = 16 * 1024


def parameter(values: list[float] | Tensor, grad: list[float] | Tensor, dtype: torch.dtype = F64) -> Tensor:
    p = torch.as_tensor(values, dtype=F64).to(dtype, copy=True)
    p.grad = torch.as_tensor(grad, dtype=F64).to(dtype, copy=True)
    return p


def both(*params: Tensor, steps: int = 1, groups: list[dict[str, Any]] | None = None, **options: Any) -> None:
    """Steps with ours, and asserts that the reference in float64 gives the same parameters."""
    references = [parameter(p.detach(), p.grad) for p in params]
    wanted = ReferenceLAMB(regrouped(references, groups), **options)
    ours = LAMB(regrouped(list(params), groups), **options)
    for _ in range(steps):
        wanted.step()
        ours.step()
    assert all(e.path == "fused" for e in ours.explain())
    for p, expected in zip(params, references, strict=True):
        torch.testing.assert_close(p.detach(), expected.to(p.dtype))


def regrouped(params: list[Tensor], groups: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if groups is None:
        return [{"params": params}]
    return [{"params": [p], **options} for p, options in zip(params, groups, strict=True)]


@pytest.mark.parametrize("cls", [ReferenceLAMB, LAMB])
def test_by_hand(cls: type[torch.optim.Optimizer]) -> None:
    """The first step, with bias correction: m / (sqrt(v) + eps) is the sign of the gradient."""
    p = parameter([3.0, 4.0], [0.6, -0.8])
    optimizer = cls([p], lr=0.5, eps=0.0, weight_decay=0.1)
    optimizer.step()
    # |w| = 5; u = (1, -1) + 0.1 * (3, 4) = (1.3, -0.6), |u| = sqrt(2.05)
    ratio = 5 / 2.05**0.5
    expected = torch.tensor([3 - 0.5 * ratio * 1.3, 4 + 0.5 * ratio * 0.6], dtype=F64)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.tensor([0.06, -0.08], dtype=F64))
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], torch.tensor([0.36e-3, 0.64e-3], dtype=F64))


@pytest.mark.parametrize("cls", [ReferenceLAMB, LAMB])
def test_by_hand_without_corrections(cls: type[torch.optim.Optimizer]) -> None:
    """m = g and v = 0.1 g^2, so u = 1 / sqrt(0.1) = sqrt(10) in each of 4 elements, and |u| = 2 sqrt(10)."""
    p = parameter([2.0] * 4, [0.1] * 4)
    options = {"bias_correction": False, "grad_averaging": False, "always_adapt": True, "max_grad_norm": None}
    cls([p], lr=0.5, betas=(0.9, 0.9), eps=0.0, weight_decay=0.0, **options).step()
    torch.testing.assert_close(p.detach(), torch.full((4,), 2 - 0.5 * (4 / (2 * 10**0.5)) * 10**0.5, dtype=F64))


@pytest.mark.parametrize("cls", [ReferenceLAMB, LAMB])
@pytest.mark.parametrize(
    ("max_grad_norm", "factor"), [(None, 1), (torch.inf, 1), (25.0, 1), (5.0, 1), (1.0, 0.2), (1e-3, 2e-4)], ids=str
)
def test_clip_has_no_epsilon(cls: type[torch.optim.Optimizer], max_grad_norm: float | None, factor: float) -> None:
    """Over all groups and dtypes: the gradients 3 and 4 have norm 5. With beta1 = 0, exp_avg is what is left."""
    p, q = parameter([1.0], [3.0], F64), parameter([1.0], [4.0], F32)
    optimizer = cls([{"params": [p]}, {"params": [q], "lr": 0.1}], betas=(0.0, 0.9), max_grad_norm=max_grad_norm)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].item() == pytest.approx(3 * factor, rel=1e-14)
    assert optimizer.state[q]["exp_avg"].item() == pytest.approx(4 * factor, rel=1e-7)
    assert p.grad.item() == 3, "the gradient itself was clipped"


def test_a_norm_limit_of_zero_leaves_no_gradient() -> None:
    p = parameter([3.0, 4.0], [1.0, 2.0])
    optimizer = LAMB([p], lr=0.1, weight_decay=0.0, max_grad_norm=0)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].tolist() == [0, 0]
    assert p.tolist() == [3, 4]
    assert optimizer.grad_norm == 5**0.5


@by_dtype
def test_only_groups_with_decay_adapt(dtype: torch.dtype) -> None:
    grad = [0.5, -0.25, 0.125]
    params = [parameter([3.0, 4.0, 12.0], grad, dtype) for _ in range(3)]
    options = [{"weight_decay": 0.0}, {"weight_decay": 0.1}, {"weight_decay": 0.0, "always_adapt": True}]
    both(*params, groups=options, lr=0.01, eps=0.0)
    assert params[0][0].item() == pytest.approx(3 - 0.01, rel=torch.finfo(dtype).eps), "its ratio is not 1"
    assert params[2][0].item() == pytest.approx(3 - 0.01 * 13 / 3**0.5, rel=torch.finfo(dtype).eps)


@by_dtype
def test_ratio_is_one_where_a_norm_is_zero(dtype: torch.dtype) -> None:
    zero_parameter = parameter([0.0] * 3, [1.0, -1.0, 1.0], dtype)
    zero_update = parameter([5.0] * 3, [0.0] * 3, dtype)
    both(zero_parameter, zero_update, lr=0.125, weight_decay=0.0, always_adapt=True, eps=1e-6)
    assert zero_update.tolist() == [5] * 3
    torch.testing.assert_close(zero_parameter.abs(), torch.full((3,), 0.125, dtype=dtype), rtol=1e-2, atol=0)


@pytest.mark.parametrize("phi", [(0.0, 10.0), (2.0, 10.0), (0.0, 0.5), (3.0, 3.0)], ids=str)
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 100.0])
def test_phi_bounds_the_parameter_norm(phi: tuple[float, float], size: float) -> None:
    """Of a zero parameter too: its norm is then the lower bound, and its ratio not 1 unless that is 0."""
    p = parameter([size], [1.0])
    both(p, lr=0.01, eps=0.0, weight_decay=0.0, always_adapt=True, phi=phi)
    bounded = min(max(size, phi[0]), phi[1])
    assert p.item() == pytest.approx(size - 0.01 * (bounded or 1), rel=1e-14)


@pytest.mark.parametrize("trust_clip", [0.5, 1.0, 10.0])
def test_trust_clip_is_an_upper_bound(trust_clip: float) -> None:
    large, small = parameter([3.0], [1.0]), parameter([0.25], [1.0])
    both(large, small, lr=0.01, eps=0.0, weight_decay=0.0, always_adapt=True, trust_clip=trust_clip)
    assert large.item() == pytest.approx(3 - 0.01 * min(3, trust_clip), rel=1e-14)
    assert small.item() == pytest.approx(0.25 - 0.01 * min(0.25, trust_clip), rel=1e-14)


@by_dtype
@pytest.mark.parametrize("numel", [1, 17, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_a_step_is_as_long_as_the_learning_rate_says(numel: int, dtype: torch.dtype) -> None:
    """|change| = lr |w|, whatever the gradient: over all chunks of a tensor, and in the dtype that moments are kept in.

    Small gradients have squares beneath float16, where exp_avg_sq is 0: the norm must be of the update that is made.
    """
    for scale in (1.0, 3e-3, 1e-5):
        w = torch.rand(numel) + 0.5
        p = parameter(w, scale * (1 + torch.rand(numel)), dtype)
        before = clone(p, F64)
        LAMB([p], lr=0.25, weight_decay=0.0, always_adapt=True, max_grad_norm=None).step()
        change = (p.double() - before).norm() / before.norm()
        assert change.item() == pytest.approx(0.25, rel=4 * torch.finfo(dtype).eps)


def test_trust_ratio_is_each_tensors_own() -> None:
    together = [parameter(torch.rand(n), torch.rand(n), F32) for n in (5, CHUNK + 7, 3 * CHUNK, 1)]
    alone = [parameter(p.detach(), p.grad, F32) for p in together]
    options: dict[str, Any] = {"lr": 0.1, "max_grad_norm": None}
    LAMB(together, **options).step()
    for p, q in zip(together, alone, strict=True):
        LAMB([q], **options).step()
        assert torch.equal(p, q)


def test_dtypes_in_one_group() -> None:
    params = [parameter(torch.rand(40) + 0.5, torch.rand(40), dtype) for dtype in (F32, F64, *HALVES)]
    optimizer = LAMB(params, lr=0.1, max_grad_norm=0.5)
    optimizer.step()
    norm = sum(float(p.grad.double().square().sum()) for p in params) ** 0.5
    assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    for p in params:
        assert optimizer.state[p]["exp_avg"].dtype == p.dtype
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], (p.grad * 0.1 * 0.5 / norm).to(p.dtype))


@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
def test_a_norm_that_is_not_finite(value: float) -> None:
    """apex's rule: g * max / inf is 0, or NaN for the infinite one; a NaN norm does not clip."""
    p = parameter([1.0, 2.0], [value, 1.0])
    q = parameter([1.0], [1.0])
    optimizer = LAMB([p, q], betas=(0.0, 0.9))
    optimizer.step()
    assert not optimizer.grad_norm.isfinite()
    assert optimizer.state[p]["exp_avg"][0].isnan()
    assert optimizer.state[q]["exp_avg"].item() == (0 if value == torch.inf else 1)


def test_steps_add_up() -> None:
    """The bias correction counts; each parameter for itself."""
    p, q = parameter([3.0, 4.0], [0.1, 0.2]), parameter([1.0], [0.3])
    both(p, q, steps=7, lr=0.1, weight_decay=0.1)
    p, q = parameter([3.0, 4.0], [0.1, 0.2]), parameter([1.0], [0.3])
    optimizer = LAMB([p, q])
    optimizer.step()
    q.grad = None
    optimizer.step()
    assert optimizer.state[p]["step"] == 2
    assert optimizer.state[q]["step"] == 1


def test_native_is_the_same_algorithm() -> None:
    """The readable implementation that the fused path falls back to."""
    for options in ({}, {"always_adapt": True, "phi": (0.5, 2.0), "grad_averaging": False}, {"trust_clip": 0.5}):
        p = parameter(torch.rand(50), torch.rand(50))
        q = parameter(p.detach(), p.grad)
        ReferenceLAMB([p], lr=0.1, **options).step()
        with native():
            LAMB([q], lr=0.1, **options).step()
        torch.testing.assert_close(q, p, rtol=1e-13, atol=1e-15)


def test_maximize_is_the_gradient_negated() -> None:
    p, q = parameter([3.0, 4.0], [0.6, -0.8], F16), parameter([3.0, 4.0], [-0.6, 0.8], F16)
    LAMB([p], maximize=True).step()
    LAMB([q]).step()
    assert torch.equal(p, q)
    assert not torch.equal(p.detach(), torch.tensor([3.0, 4.0], dtype=F16))
