"""A network for tests of steps in the backward pass, and the same training with ordinary steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import F32
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

import fusedopt


class Net(nn.Module):
    """With a layer that is used twice, and one that is used in every other pass."""

    def __init__(self, depth: int = 3, width: int = 8, dtype: torch.dtype = F32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(depth))
        self.sometimes = nn.Linear(width, width, bias=False, dtype=dtype)

    def forward(self, x: Tensor, step: int = 0) -> Tensor:
        for layer in (*self.layers, self.layers[0]):
            x = torch.tanh(layer(x))
        return self.sometimes(x) if step % 2 else x


def backward(model: nn.Module, step: int, **options: Any) -> None:
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(4, 8, generator=rng).to(next(model.parameters()).dtype)
    model(x, step).float().square().sum().backward(**options)


def groups(model: Net) -> list[dict[str, Any]]:
    first, *others = model.parameters()
    return [{"params": [first]}, {"params": others, "lr": 0.02}]


def train(model: Net, optimizer: Optimizer, steps: Iterator[int] | range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def assert_same(model: Net, optimizer: Optimizer, other: Net, its: Optimizer) -> None:
    """Bit for bit, in the states as well."""
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_equal(p, q)
        state, its_state = optimizer.state.get(p, {}), its.state.get(q, {})
        assert state.keys() == its_state.keys()
        for name, value in state.items():
            assert_equal(value, its_state[name])


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def pair(make: Callable[..., Optimizer], **kwargs: Any) -> tuple[Net, Optimizer, Net, Optimizer]:
    model, other = Net(**kwargs), Net(**kwargs)
    return model, make(groups(model)), other, make(groups(other))


def adam(params: Any, **kwargs: Any) -> fusedopt.AdamW:
    return fusedopt.AdamW(params, **({"lr": 0.1} | kwargs))
