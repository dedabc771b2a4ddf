"""What a schedule will do, without training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


class Simulation(NamedTuple):
    """Learning rates and momenta of the coming steps.

    Attributes:
        lr: float64 [steps, groups], on the CPU.
        momentum: float64 [steps, groups]: `momentum`, else the first of `betas`; NaN where a group has neither.
    """

    lr: Tensor
    momentum: Tensor

    @property
    def changes_momentum(self) -> bool:
        """Whether a group's momentum is not the same at every step."""
        return bool(((self.momentum != self.momentum[0]) & ~self.momentum.isnan()).any())


def simulate(schedule: LRScheduler, steps: int, metrics: Sequence[float] | None = None) -> Simulation:
    """Returns the learning rates and momenta of the next steps, by running a copy of the schedule.

    Row 0 is what the groups hold now, row i what they would hold after `schedule.step()` has been called i times:
    exactly, since the copy runs the schedule's own code. Neither the schedule nor its optimizer is changed.

    Args:
        schedule: any, of torch or of this package, at any step.
        steps: number of rows, at least 1.
        metrics: what `schedule.step` is given each time, at least `steps - 1` values: for a schedule that depends on a
            metric, such as :class:`~torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Raises:
        ValueError: `steps` is below 1, or metrics are missing; and what the schedule raises, as
            :class:`~torch.optim.lr_scheduler.OneCycleLR` does beyond its end.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if metrics is not None and len(metrics) < steps - 1:
        raise ValueError(f"{steps} steps need {steps - 1} metrics, not {len(metrics)}")
    if metrics is None and isinstance(schedule, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau needs a metric at each step; pass metrics")
    optimizer = schedule.optimizer
    groups = _Groups(optimizer)
    # Wherever the copied schedule refers to the optimizer, and those nested in it, the copy refers to the stand-in.
    twin = copy.deepcopy(schedule, {id(optimizer): groups})
    lr, momentum = [groups.lrs()], [groups.momenta()]
    for step in range(steps - 1):
        if metrics is None:
            twin.step()
        else:
            twin.step(metrics[step])  # type: ignore[arg-type]
        lr.append(groups.lrs())
        momentum.append(groups.momenta())
    return Simulation(torch.tensor(lr, dtype=torch.float64), torch.tensor(momentum, dtype=torch.float64))


class _Groups(Optimizer):
    """An optimizer's groups without its parameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        # Not Optimizer's constructor: it asks for parameters.
        self.defaults = optimizer.defaults
        self.param_groups = [
            {name: copy.deepcopy(value) for name, value in group.items() if name != "params"} | {"params": []}
            for group in optimizer.param_groups
        ]
        self._opt_called = True

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Never called."""

    # The schedules warn unless the optimizer's step counts its calls, and has been called.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.param_groups]

    def momenta(self) -> list[float]:
        return [float(group.get("momentum", group.get("betas", (math.nan,))[0])) for group in self.param_groups]
