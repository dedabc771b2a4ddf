"""Schedules by name, each filling a run of a given length: what `fusedopt plot-schedule` draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as of_torch
from torch.optim.lr_scheduler import LRScheduler

from fusedopt.optim import SGD
from fusedopt.schedulers.decay import ExponentialDecayLR, FlatCosineLR, HalvingLR, InverseDecayLR, InverseSqrtLR
from fusedopt.schedulers.ramp import RampLR
from fusedopt.schedulers.simulate import Simulation, simulate
from fusedopt.schedulers.warmup import WarmupLR, WarmupStableDecayLR

Maker = Callable[[Optimizer, int, float, float], LRScheduler]
"""Makes a schedule, given an optimizer with the highest learning rate, the number of steps, the lowest learning rate,
and the highest."""

OURS: dict[str, Maker] = {
    "exponential-decay": lambda o, steps, low, high: ExponentialDecayLR(o, k=4 / steps),
    "halving": lambda o, steps, low, high: HalvingLR(o, every=_part(steps, 4)),
    "inverse-decay": lambda o, steps, low, high: InverseDecayLR(o, k=8 / steps),
    "inverse-sqrt": lambda o, steps, low, high: InverseSqrtLR(o, timescale=steps / 8),
    "flat-cosine": lambda o, steps, low, high: FlatCosineLR(o, steps - 1 or 1, final_factor=low / high),
    "warmup-stable-decay": lambda o, steps, low, high: WarmupStableDecayLR(
        o, steps // 8, steps - 1 - steps // 8 - steps // 4, steps // 4, start_factor=low / high
    ),
    "warmup-linear": lambda o, steps, low, high: WarmupLR(o, steps // 4, "linear", low / high),
    "warmup-exponential": lambda o, steps, low, high: WarmupLR(o, steps // 4, "exponential", low / high),
    "warmup-constant": lambda o, steps, low, high: WarmupLR(o, steps // 4, "constant", low / high),
    "warmup-cosine": lambda o, steps, low, high: WarmupLR(
        o,
        steps // 4,
        start_factor=low / high,
        after=of_torch.CosineAnnealingLR(o, steps - 1 - steps // 4 or 1, low),
    ),
    "ramp-exp": lambda o, steps, low, high: RampLR(_starting_at(low, o), high, steps - 1 or 1),
    "ramp-linear": lambda o, steps, low, high: RampLR(_starting_at(low, o), high, steps - 1 or 1, "linear"),
}
TORCHS: dict[str, Maker] = {
    "step": lambda o, steps, low, high: of_torch.StepLR(o, _part(steps, 4), gamma=0.5),
    "multi-step": lambda o, steps, low, high: of_torch.MultiStepLR(o, [steps // 2, 3 * steps // 4], gamma=0.1),
    "exponential": lambda o, steps, low, high: of_torch.ExponentialLR(o, gamma=(low / high) ** (1 / steps)),
    "cosine": lambda o, steps, low, high: of_torch.CosineAnnealingLR(o, T_max=steps, eta_min=low),
    "warm-restarts": lambda o, steps, low, high: of_torch.CosineAnnealingWarmRestarts(o, _part(steps, 4), eta_min=low),
    "triangular": lambda o, steps, low, high: of_torch.CyclicLR(
        o, low, high, _part(steps, 8), cycle_momentum=_cycles(o)
    ),
    "triangular2": lambda o, steps, low, high: of_torch.CyclicLR(
        o, low, high, _part(steps, 8), mode="triangular2", cycle_momentum=_cycles(o)
    ),
    "exp-range": lambda o, steps, low, high: of_torch.CyclicLR(
        o, low, high, _part(steps, 8), mode="exp_range", gamma=0.5 ** (4 / steps), cycle_momentum=_cycles(o)
    ),
    "one-cycle": lambda o, steps, low, high: of_torch.OneCycleLR(
        o, max_lr=high, total_steps=steps, cycle_momentum=_cycles(o)
    ),
}
GALLERY = OURS | TORCHS
_ABOVE_ZERO = (
    "exponential",
    "ramp",
    "warmup",
)  # begin the names of those that multiply the lowest rate, or start there


def check_range(name: str, low: float, high: float) -> None:
    """Raises ValueError where a schedule cannot go between these learning rates; the lowest of some may be 0."""
    if not 0 < high < float("inf"):
        raise ValueError(f"the highest learning rate must be above 0 and finite, not {high:g}")
    positive = name == "exponential" or name.startswith(("ramp", "warmup"))  # multiply the lowest, or start there
    if not 0 <= low <= high or (positive and low == 0):
        least = "above 0" if positive else "at least 0"
        raise ValueError(f"the lowest learning rate, {low:g}, must be {least} and at most the highest, {high:g}")


def simulate_named(name: str, steps: int, max_lr: float, min_lr: float) -> Simulation:
    """Returns what the schedule of that name does over a run of so many steps, with SGD and momentum 0.9.

    Args:
        name: one of `GALLERY`.
        steps: at least 2.
        max_lr: the highest learning rate.
        min_lr: at most `max_lr`: the lowest, for schedules that have one; 0 for those that can end there.

    Raises:
        ValueError: the name is unknown, or an argument is out of its range.
    """
    if name not in GALLERY:
        raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(GALLERY)}")
    if steps < 2:
        raise ValueError(f"a schedule has at least 2 steps, not {steps}")
    check_range(name, min_lr, max_lr)
    optimizer = SGD([torch.zeros(1)], lr=max_lr, momentum=0.9)
    return simulate(GALLERY[name](optimizer, steps, min_lr, max_lr), steps)


def _part(steps: int, parts: int) -> int:
    return max(1, steps // parts)


def _cycles(optimizer: Optimizer) -> bool:
    """Whether a cyclic schedule moves the momentum too: not where there is none, nor where a graph would freeze it."""
    groups = optimizer.param_groups
    return all((g.get("momentum") or "betas" in g) and not g.get("capturable") for g in groups)


def _starting_at(lr: float, optimizer: Optimizer) -> Optimizer:
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer
