"""Decays: a high learning rate at first, a low one at the end."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from typing_extensions import override

from fusedopt.schedulers.arguments import above_zero, at_least, fraction
from fusedopt.schedulers.closed_form import LR, ClosedFormLR

DecayShape = Literal["linear", "cosine", "1-sqrt"]


class ExponentialDecayLR(ClosedFormLR):
    """base * e^(-k t): :class:`~torch.optim.lr_scheduler.ExponentialLR` with gamma = e^-k.

    Source: Raschka, STAT 453 L11; with `every`, its `adjust_learning_rate`.

    Args:
        optimizer: whose learning rates to set.
        k: the decay rate per step, at least 0.
        every: the learning rate changes at multiples of so many steps and stays in between, at least 1.
        last_epoch: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, k: float, every: int = 1, last_epoch: int = -1) -> None:
        self.k = at_least("k", k, 0)
        self.every = at_least("every", every, 1)
        super().__init__(optimizer, last_epoch)

    @override
    def formula(self, base: LR, step: int) -> LR:
        return base * math.exp(-self.k * (step - step % self.every))


class HalvingLR(ClosedFormLR):
    """base / 2^n after n times `every` steps.

    Args:
        optimizer: whose learning rates to set.
        every: number of steps from one halving to the next, at least 1.
        last_epoch: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, optimizer: Optimizer, every: int = 1, last_epoch: int = -1) -> None:
        self.every = at_least("every", every, 1)
        super().__init__(optimizer, last_epoch)

    @override
    def formula(self, base: LR, step: int) -> LR:
        return base * 0.5 ** (step // self.every)


class InverseDecayLR(ClosedFormLR):
    """base / (1 + k t).

    Args:
        optimizer: whose learning rates to set.
        k: the decay rate per step, at least 0.
        last_epoch: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: `k` is below 0.
    """

    def __init__(self, optimizer: Optimizer, k: float, last_epoch: int = -1) -> None:
        self.k = at_least("k", k, 0)
        super().__init__(optimizer, last_epoch)

    @override
    def formula(self, base: LR, step: int) -> LR:
        return base / (1 + self.k * step)


class InverseSqrtLR(ClosedFormLR):
    """base / sqrt(1 + t / timescale).

    With a warm-up of w = timescale steps, `WarmupLR(optimizer, w, after=InverseSqrtLR(optimizer, w))`, it becomes
    base * sqrt(w / t): the schedule of "Attention Is All You Need", https://arxiv.org/abs/1706.03762.

    Args:
        optimizer: whose learning rates to set.
        timescale: number of steps, above 0; after three times as many the learning rate is half the base.
        last_epoch: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: `timescale` is not above 0.
    """

    def __init__(self, optimizer: Optimizer, timescale: float = 10_000, last_epoch: int = -1) -> None:
        self.timescale = above_zero("timescale", timescale)
        super().__init__(optimizer, last_epoch)

    @override
    def formula(self, base: LR, step: int) -> LR:
        return base / math.sqrt(1 + step / self.timescale)


class FlatCosineLR(ClosedFormLR):
    """base for the first part of the run, then half a cosine down to final_factor * base, which then stays.

    Unlike :class:`~torch.optim.lr_scheduler.CosineAnnealingLR` it does not rise again after the end. Source: fastai's
    `fit_flat_cos`, https://docs.fast.ai/callback.schedule.html.

    Args:
        optimizer: whose learning rates to set.
        total_steps: the step at which the end is reached, at least 1.
        flat: the part of the run before the decay, 0 to 1; 0 is a cosine over the whole run.
        final_factor: of the base, 0 to 1.
        last_epoch: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        flat: float = 0.75,
        final_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = at_least("total_steps", total_steps, 1)
        self.flat = fraction("flat", flat)
        self.final_factor = fraction("final_factor", final_factor)
        super().__init__(optimizer, last_epoch)

    @override
    def formula(self, base: LR, step: int) -> LR:
        flat_steps = self.flat * self.total_steps
        if step >= self.total_steps:
            return base * self.final_factor
        if step <= flat_steps:
            return base
        x = (step - flat_steps) / (self.total_steps - flat_steps)
        return base * (self.final_factor + (1 - self.final_factor) * remaining("cosine", x))


def remaining(shape: DecayShape, x: float) -> float:
    """What is left of 1 at a point x of a decay, 0 to 1."""
    if shape == "linear":
        return 1 - x
    return (1 + math.cos(math.pi * x)) / 2 if shape == "cosine" else 1 - math.sqrt(x)
