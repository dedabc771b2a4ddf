"""LARS: what its class adds to the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fusedopt
from fusedopt.optim._processes import Spread

both_paths = pytest.mark.parametrize("native", [False, True])


def step(opt: torch.optim.Optimizer, native: bool) -> None:
    with fusedopt.native() if native else torch.no_grad():
        opt.step()
    assert {e.path for e in opt.explain()} == {"torch" if native else "fused"}  # type: ignore[attr-defined]


def parameter(values: Any, grad: Any) -> Tensor:
    p = torch.tensor(values).requires_grad_()
    p.grad = torch.tensor(grad)
    return p


@both_paths
def test_two_steps_by_hand(native: bool) -> None:
    p = parameter([[3.0, 4.0]], [[0.0, 10.0]])
    opt = fusedopt.LARS([p], lr=2.0, momentum=0.5, weight_decay=2.0, trust_coefficient=0.5)
    step(opt, native)  # norms 5 and 10: the rate is 2 * 0.5 * 5 / (10 + 2 * 5), of a gradient [6, 18]
    torch.testing.assert_close(p.detach(), torch.tensor([[1.5, -0.5]]))
    opt.param_groups[0]["lr"] = 0.0
    step(opt, native)  # the rate is inside the velocity: this goes on at the old one
    torch.testing.assert_close(p.detach(), torch.tensor([[0.75, -2.75]]))


@both_paths
@pytest.mark.parametrize(("values", "grad"), [([[0.0, 0.0]], [[3.0, 4.0]]), ([[3.0, 4.0]], [[0.0, 0.0]])])
def test_the_ratio_is_one_where_a_norm_is_zero(native: bool, values: Any, grad: Any) -> None:
    p = parameter(values, grad)
    expected = p.detach() - 0.5 * (p.grad + 0.1 * p.detach())  # type: ignore[operator]
    step(fusedopt.LARS([p], lr=0.5, weight_decay=0.1), native)
    torch.testing.assert_close(p.detach(), expected)


@both_paths
@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_excluded_are_those_of_at_most_one_dimension_of_the_group(native: bool, state_dtype: Any) -> None:
    """Without ratio and without decay: steps of SGD, while the group's other tensors go on as they would."""
    shapes, options = [(5,), (), (5, 1), (2, 3), (1, 1)], {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}

    def start() -> list[Tensor]:
        torch.manual_seed(0)
        params = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for p in params:
            p.grad = torch.randn(p.shape)
        return params

    params, vectors, others = start(), start(), start()
    opt = fusedopt.LARS(params, **options, exclude_1d=True, state_dtype=state_dtype)
    sgd = torch.optim.SGD(vectors[:2], lr=0.5, momentum=0.9)
    whole = fusedopt.LARS(others[2:], **options)
    for _ in range(3):
        step(opt, native)
        sgd.step()
        whole.step()
    for p, expected in zip(params, [*vectors[:2], *others[2:]], strict=True):
        torch.testing.assert_close(p, expected)
    opt.param_groups[0]["exclude_1d"] = False
    before = params[0].detach().clone()
    step(opt, native)
    sgd.step()
    assert not torch.allclose(params[0] - before, vectors[0].detach() - before, rtol=1e-3)


def test_exclusion_is_refused_where_dimensions_cannot_be_seen() -> None:
    p = parameter([3.0, 4.0], [1.0, 1.0])
    opt = fusedopt.LARS([p], lr=0.5)
    opt._spread = Spread(None, pieces=True)
    opt.param_groups[0]["exclude_1d"] = True
    with pytest.raises(ValueError, match="parameters are pieces of tensors"):
        opt.step()
    assert p.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"momentum": -0.5}, "Invalid momentum value: -0.5"),
        ({"weight_decay": -0.5}, "Invalid weight_decay value: -0.5"),
        ({"trust_coefficient": -0.5}, "Invalid trust_coefficient value: -0.5"),
        ({"eps": float("nan")}, "Invalid eps value: nan"),
        ({"momentum": 0.0, "nesterov": True}, "Nesterov momentum requires a momentum"),
    ],
)
def test_hyper_parameters_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusedopt.LARS([torch.ones(2, requires_grad=True)], **({"lr": 0.1} | options))
