"""Parameters and gradients for the CUDA back end, and a second optimizer that sees the same."""

from __future__ import annotations

from typing import Any

import cases
import gpu
import pytest
import torch
from cases import BY_NAME, ONE_OF_EACH, Case
from torch import Tensor
from torch.optim import Optimizer

CASES = [
    BY_NAME[name]
    for name in (
        "sgd-nesterov",
        "rmsprop-centered-momentum",
        "adagrad-lr-decay",
        "adam-amsgrad",
        "adamw",
        "lamb-no-clip",
        "sgd-classic-dampening",
        "delta-bar-delta-momentum",
        "adamax",
        "adadelta",
        "radam-rectified",
        "nadam",
        "asgd-averages",
        "lion",
        "rprop",
        "lars-exclude",
        "swats",
        "swats-switch",
    )
]
CASES += [case for case in ONE_OF_EACH if case.cls not in {named.cls for named in CASES}]


ALL_CASES = [case for case in cases.CASES if not case.max_grad_norm]


each_case = pytest.mark.parametrize("case", CASES, ids=str)


def takes_two_passes(case: Case) -> bool:
    return case.cls._sum_scope == "tensor"


ELEMENTWISE = [case for case in CASES if not takes_two_passes(case)]


SHAPES = [(3,), (16, 7), (0,), (20_000,), (64,)]


def make_params(shapes: Any = SHAPES, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(7)
    return [torch.randn(s, generator=rng).to(gpu.DEVICE, dtype).requires_grad_() for s in shapes]


def set_grads(params: list[Tensor], seed: int, *, scale: float = 1.0, in_place: bool = False) -> None:
    rng = torch.Generator().manual_seed(seed)
    for p in params:
        grad = (torch.randn(p.shape, generator=rng) * scale).to(p.device, p.dtype)
        if in_place and p.grad is not None:
            p.grad.copy_(grad)
        else:
            p.grad = grad


def assert_equal(ours: Optimizer, theirs: Optimizer) -> None:
    """Bit for bit, states included."""
    for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        for p, q in zip(mine["params"], other["params"], strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)
            torch.testing.assert_close(dict(ours.state[p]), dict(theirs.state[q]), rtol=0, atol=0)


def steady(optimizer: Optimizer) -> tuple[int, int, int]:
    optimizer.step()
    optimizer.step()
    return gpu.work(optimizer.step)


class Pair:
    """An optimizer whose steps are replayed, and one that takes them eagerly."""

    def __init__(self, case: Case, **options: Any) -> None:
        self.params, self.twins = make_params(), make_params()
        self.ours = case.make(self.params, capturable=True, **options)
        self.theirs = case.make(self.twins, capturable=True, **options)
        self.eager(0)

    def grads(self, seed: int, *, in_place: bool = True) -> None:
        set_grads(self.params, seed, in_place=in_place)
        set_grads(self.twins, seed)

    def eager(self, seed: int) -> None:
        self.grads(seed, in_place=False)
        self.ours.step()
        self.theirs.step()
        assert_equal(self.ours, self.theirs)

    def capture(self) -> gpu.Graph:
        before = [p.detach().clone() for p in self.params]
        graph = gpu.Graph(self.ours.step)
        assert all(torch.equal(p, b) for p, b in zip(self.params, before, strict=True))
        return graph

    def replay(self, graph: gpu.Graph, grads: list[Tensor], seed: int) -> None:
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        self.grads(seed)
        graph.replay()
        self.theirs.step()
        assert_equal(self.ours, self.theirs)

    @property
    def static(self) -> list[Tensor]:
        return [p.grad for p in self.params if p.grad is not None]
