"""The learning-rate range test's ramp."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch.optim import Optimizer

from fusedopt.schedulers.arguments import above_zero, at_least, one_of
from fusedopt.schedulers.closed_form import LR, ClosedFormLR

StepMode = Literal["exp", "linear"]


class RampLR(ClosedFormLR):
    """From the base up (or down) to `end_lr`, where it stays: the ramp of a learning-rate range test.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", https://arxiv.org/abs/1506.01186.

    Args:
        optimizer: whose learning rates to set; their bases must be above 0.
        end_lr: above 0; a float for all groups, those added later included, or one for each.
        num_iter: number of steps to reach it, at least 1.
        step_mode: "exp" grows by the same factor, "linear" by the same amount in each step.
        last_epoch: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: an argument or a base learning rate is out of its range; by `step`, a group has been added for which
            there is no `end_lr`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        end_lr: float | Sequence[float],
        num_iter: int,
        step_mode: StepMode = "exp",
        last_epoch: int = -1,
    ) -> None:
        groups = optimizer.param_groups
        self.end_lrs = list(end_lr) if isinstance(end_lr, Sequence) else [end_lr] * len(groups)
        self._everyones_end = None if isinstance(end_lr, Sequence) else end_lr
        if len(self.end_lrs) != len(groups):
            raise ValueError(f"end_lr has {len(self.end_lrs)} values for {len(groups)} parameter group(s)")
        for end, group in zip(self.end_lrs, groups, strict=True):
            above_zero("end_lr", end)
            _check_start(group)
        self.num_iter = at_least("num_iter", num_iter, 1)
        self.step_mode = one_of("step_mode", step_mode, get_args(StepMode))
        super().__init__(optimizer, last_epoch)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Takes a step; changes nothing where a group has been added that the ramp cannot take in."""
        for group in self._added():
            _check_start(group)
        self._ends(len(self.optimizer.param_groups))
        super().step(*args, **kwargs)

    def _ends(self, groups: int) -> list[float]:
        if self._everyones_end is not None:
            return [*self.end_lrs, *[self._everyones_end] * (groups - len(self.end_lrs))]
        if len(self.end_lrs) < groups:
            raise ValueError(
                f"end_lr has {len(self.end_lrs)} values and there are {groups} parameter groups by now; append one to "
                f"this schedule's end_lrs for each that was added"
            )
        return self.end_lrs

    def _formulas(self, bases: Sequence[LR], step: int) -> list[LR]:
        ends = self._ends(len(bases))
        done = min(step / self.num_iter, 1.0)
        if self.step_mode == "linear":
            return [base + (end - base) * done for base, end in zip(bases, ends, strict=True)]
        return [base * (end / base) ** done for base, end in zip(bases, ends, strict=True)]


def _check_start(group: dict[str, Any]) -> None:
    above_zero("the group's learning rate, where the ramp starts,", float(group.get("initial_lr", group["lr"])))


def make_lr_fn(start_lr: float, end_lr: float, num_iter: int, step_mode: StepMode = "exp") -> Callable[[Any], Any]:
    """Returns the multiplier of a range test's ramp, for :class:`~torch.optim.lr_scheduler.LambdaLR`.

    From 1 at iteration 0 to end_lr / start_lr at iteration `num_iter`, and on at the same rate: an optimizer with
    learning rate `start_lr` arrives at `end_lr`. The function takes an iteration, or a NumPy array of them.

    Source: Voigt Godoy, "Deep Learning with PyTorch Step-by-Step", ch. 6. Slides of it print
    `exp(factor) * iteration`; the numbers they show are those of the power `exp(factor) ** iteration`, as here.

    Raises:
        ValueError: a learning rate is not above 0, `num_iter` is below 1, or the mode is unknown.
    """
    above_zero("start_lr", start_lr)
    above_zero("end_lr", end_lr)
    at_least("num_iter", num_iter, 1)
    if one_of("step_mode", step_mode, get_args(StepMode)) == "linear":
        slope = (end_lr / start_lr - 1) / num_iter
        return lambda iteration: 1 + iteration * slope
    growth = math.exp((math.log(end_lr) - math.log(start_lr)) / num_iter)
    return lambda iteration: growth**iteration
