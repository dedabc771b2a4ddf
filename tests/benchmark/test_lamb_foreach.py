"""The LAMB that ours is compared with is the paper's."""

import pytest
import torch
from torch import Tensor

from fusedopt.benchmark.lamb_foreach import LambForeach


def lamb_reference(
    groups: list[dict[str, float]], params: list[list[Tensor]], grads: list[list[list[Tensor | None]]], max_norm: float
) -> list[list[Tensor]]:
    """LAMB, tensor by tensor in float64: ``grads[step][group][tensor]``."""
    beta1, beta2 = 0.9, 0.999
    params = [[p.double() for p in group] for group in params]
    exp_avgs = [[torch.zeros_like(p) for p in group] for group in params]
    exp_avg_sqs = [[torch.zeros_like(p) for p in group] for group in params]
    for count, step_grads in enumerate(grads, 1):
        norm = sum(float(g.double().square().sum()) for group in step_grads for g in group if g is not None) ** 0.5
        for i, options in enumerate(groups):
            for j, g in enumerate(step_grads[i]):
                if g is None:
                    continue
                g = g.double()
                if norm > max_norm:
                    g = g * (max_norm / norm)
                exp_avgs[i][j] = beta1 * exp_avgs[i][j] + (1 - beta1) * g
                exp_avg_sqs[i][j] = beta2 * exp_avg_sqs[i][j] + (1 - beta2) * g * g
                m_hat = exp_avgs[i][j] / (1 - beta1**count)
                v_hat = exp_avg_sqs[i][j] / (1 - beta2**count)
                update = m_hat / (v_hat.sqrt() + options["eps"]) + options["weight_decay"] * params[i][j]
                ratio = 1.0
                if options["weight_decay"] != 0:
                    p_norm, u_norm = float(params[i][j].norm()), float(update.norm())
                    ratio = p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0
                params[i][j] = params[i][j] - options["lr"] * ratio * update
    return params


@pytest.mark.parametrize("bucket_elements", [0, 20, 2**20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("max_norm", [1.0, 1e6])
def test_lamb_agrees_with_float64_reference(
    dtype: torch.dtype, tolerance: float, bucket_elements: int, max_norm: float
) -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    groups = [{"lr": 0.05, "eps": 1e-6, "weight_decay": 0.1}, {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.0}]
    starts = [
        [normal(4, 5), torch.zeros(7, dtype=dtype), torch.zeros(3, dtype=dtype), normal(0), normal(1)],
        [normal(6)],
    ]
    starts[0].append(normal(2, 2))  # never gets a gradient
    grads: list[list[list[Tensor | None]]] = []
    for count in range(6):
        # Norms below and above 1, so that some steps are clipped and others are not; the third tensor stays at zero.
        step_grads: list[list[Tensor | None]] = [
            [None if p is starts[0][-1] else normal(*p.shape) * (0.01 if count % 2 else 3.0) for p in group]
            for group in starts
        ]
        step_grads[0][2] = torch.zeros(3, dtype=dtype)
        grads.append(step_grads)
    params = [[torch.nn.Parameter(p.clone()) for p in group] for group in starts]
    optimizer = LambForeach(
        [{"params": group, **options} for group, options in zip(params, groups, strict=True)],
        max_grad_norm=max_norm,
        bucket_elements=bucket_elements,
    )
    for step_grads in grads:
        for group, group_grads in zip(params, step_grads, strict=True):
            for p, g in zip(group, group_grads, strict=True):
                p.grad = None if g is None else g.clone()
        optimizer.step()
        for group, group_grads in zip(params, step_grads, strict=True):
            for p, g in zip(group, group_grads, strict=True):
                assert g is None or (p.grad is not None and torch.equal(p.grad, g)), "gradients are read only"

    expected = lamb_reference(groups, starts, grads, max_norm)
    for group, expected_group, start_group in zip(params, expected, starts, strict=True):
        for p, q, start in zip(group, expected_group, start_group, strict=True):
            torch.testing.assert_close(p.detach().double(), q, rtol=tolerance, atol=tolerance)
            moved = (q - start.double()).abs()
            assert moved.numel() == 0 or p.grad is None or p.grad.count_nonzero() == 0 or moved.min() > 100 * tolerance
    assert params[0][2].count_nonzero() == 0
    assert torch.equal(params[0][-1], starts[0][-1])
