"""What is peculiar to RAdam and Rprop: counts at which the one changes its form, the other's first states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fusedopt

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("beta2", [0.0, 0.5, 2 / 3, 0.8, 0.99, 0.999, 0.9999])
def test_every_count_up_to_where_the_rate_is_rectified_and_far_beyond(dtype: torch.dtype, beta2: float) -> None:
    """The rate becomes adaptive when rho exceeds 5, at the 6th step with 0.999, and never with 2 / 3 or less."""
    torch.manual_seed(0)
    p = torch.randn(9, dtype=dtype, requires_grad=True)
    q = p.detach().clone().requires_grad_()
    ours = fusedopt.RAdam([p], lr=0.1, betas=(0.9, beta2), eps=0.01)
    theirs = torch.optim.RAdam([q], lr=0.1, betas=(0.9, beta2), eps=0.01)
    for count in [*range(12), 100, 10**4, 10**6, 2**24 - 2]:
        p.grad = torch.randn(9, dtype=dtype)
        q.grad = p.grad.clone()
        for opt, param in ((ours, p), (theirs, q)):
            if count:
                opt.state[param]["step"].fill_(count)
            opt.step()
        torch.testing.assert_close(p, q)
    assert {e.path for e in ours.explain()} == {"fused"}


@pytest.mark.parametrize("layout", ["transposed", "channels-last", "expanded"])
def test_step_sizes_lie_as_their_parameter_whatever_the_gradient(layout: str) -> None:
    """torch gives them the gradient's layout, with which no step would be fused."""
    p = torch.ones(2, 3, 4, 5).requires_grad_()
    grads: dict[str, Tensor] = {
        "transposed": torch.randn(5, 4, 3, 2).permute(3, 2, 1, 0),
        "channels-last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.randn(5).expand(2, 3, 4, 5),
    }
    p.grad = grads[layout]
    q = p.detach().clone().requires_grad_()
    q.grad = p.grad.clone()
    ours, theirs = fusedopt.Rprop([p]), torch.optim.Rprop([q])
    for _ in range(2):
        ours.step()
        theirs.step()
    assert {e.path for e in ours.explain()} == {"fused"}
    assert ours.state[p]["step_size"].stride() == p.stride()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01), torch.tensor([0.01])], ids=["float", "tensor", "one-element"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_step_sizes_begin_in_what_they_are_stored_in(dtype: torch.dtype, lr: Any) -> None:
    p = torch.ones(4, dtype=dtype, requires_grad=True)
    p.grad = torch.ones_like(p)
    opt = fusedopt.Rprop([p], lr=lr, state_dtype=F32)
    opt.step()
    assert opt.state[p]["step_size"].tolist() == [torch.tensor(0.01).item()] * 4


def test_signs_of_gradients_whose_product_is_too_small() -> None:
    p = torch.ones(2, requires_grad=True)
    opt = fusedopt.Rprop([p], lr=0.5)
    for grad in ([1e-30, 1e-30], [1e-30, -1e-30]):
        p.grad = torch.tensor(grad)
        opt.step()
    assert opt.state[p]["step_size"].tolist() == pytest.approx([0.6, 0.25])
    assert opt.state[p]["prev"][1] == 0
