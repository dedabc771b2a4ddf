"""Optimizers with nothing to do, and what a schedule makes of their learning rates."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

import fusedopt


def parameter() -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), 0.1)
    return p


def sgd(*lrs: float | torch.Tensor, momentum: float = 0.9) -> Optimizer:
    """One group for each learning rate."""
    groups = [{"params": [parameter()], "lr": lr} for lr in lrs]
    return fusedopt.SGD(groups, momentum=momentum)


def lrs(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def run(schedule, steps: int, group: int = 0) -> list[float]:
    """The learning rates of so many optimizer steps."""
    seen = []
    for _ in range(steps):
        seen.append(float(schedule.optimizer.param_groups[group]["lr"]))
        schedule.optimizer.step()
        schedule.step()
    return seen
