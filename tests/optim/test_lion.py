"""Lion: what its class adds to the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fusedopt


def test_two_steps_by_hand() -> None:
    p = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    opt = fusedopt.Lion([p], lr=0.5, betas=(0.75, 0.5), weight_decay=0.25)
    p.grad = torch.tensor([8.0, -8.0, 0.0])
    opt.step()
    assert p.tolist() == [0.375, 1.375, 0.875]  # 1 - 0.5 * 0.25 and 0.5 down, up, or neither
    assert opt.state[p]["exp_avg"].tolist() == [4.0, -4.0, 0.0]
    p.grad = torch.tensor([-8.0, 16.0, -1.0])
    opt.step()
    # 0.75 * 4 - 0.25 * 8 is above 0: the momentum has the say. The second is 1 above 0, the third below.
    assert p.tolist() == [0.375 * 0.875 - 0.5, 1.375 * 0.875 - 0.5, 0.875 * 0.875 + 0.5]
    assert opt.explain()[0].path == "fused"


def test_a_gradient_that_is_nan_moves_nothing_and_is_kept() -> None:
    """As by torch.sign. What was a number stays one; the momentum shows it."""
    results = []
    for native in (False, True):
        p = torch.ones(3, requires_grad=True)
        opt = fusedopt.Lion([p], lr=0.5)
        p.grad = torch.tensor([torch.nan, torch.inf, -torch.inf])
        with fusedopt.native() if native else torch.no_grad():
            opt.step()
        assert opt.state[p]["exp_avg"].isnan().tolist() == [True, False, False]
        results.append(p.tolist())
    assert results == [[1.0, 0.5, 1.5]] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"betas": (1.0, 0.5)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.5, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ],
)
def test_hyper_parameters_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusedopt.Lion([torch.ones(2, requires_grad=True)], **options)
