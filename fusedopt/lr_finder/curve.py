"""The ramps of learning rates, and the curve of losses that a range test records: arithmetic on floats alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

COMPLETED = "completed"
DIVERGED = "diverged"
NOT_FINITE = "loss not finite"


def ramp(start: float, end: float, num_iter: int, step_mode: str = "exp") -> list[float]:
    """Learning rates from `start` to `end`, both included exactly.

    Args:
        start, end: the first and the last; for "exp" above 0.
        num_iter: how many, at least 2.
        step_mode: "exp" for equal ratios, "linear" for equal differences.

    Raises:
        ValueError: an argument is outside of these.
    """
    mode = str(step_mode).lower()
    if mode not in ("exp", "linear"):
        raise ValueError(f"expected one of (exp, linear), got {step_mode}")
    num_iter = whole("num_iter", num_iter)
    if num_iter <= 1:
        raise ValueError(f"`num_iter` must be larger than 1, not {num_iter}")
    if mode == "exp" and not (start > 0 and end > 0):
        raise ValueError(
            f"an exponential ramp takes positive learning rates, not {start:g} to {end:g}; set start_lr above 0 "
            f"or to None, the optimizer's own, or use step_mode='linear'"
        )
    if mode == "exp" and not math.isfinite(end / start):
        raise ValueError(f"the range from {start:g} to {end:g} is too wide; set a larger start_lr")
    shares = [i / (num_iter - 1) for i in range(num_iter - 1)]
    if mode == "exp":
        return [start * (end / start) ** share for share in shares] + [end]
    return [start + share * (end - start) for share in shares] + [end]


def number(name: str, value: Any) -> float:
    """A float of whatever is one number: also a tensor or an array of one element.

    Raises:
        ValueError: it is none.
    """
    try:
        if isinstance(value, str):  # of which float would make a number
            raise TypeError
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None


def rate(name: str, value: Any) -> float:
    """A learning rate as a float: finite, and at least 0.

    Raises:
        ValueError: it is not.
    """
    lr = number(name, value)
    if not 0 <= lr < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, not {lr:g}")
    return lr


def whole(name: str, value: Any) -> int:
    """An integer.

    Raises:
        ValueError: it is none.
    """
    if (result := number(name, value)) != result // 1:
        raise ValueError(f"{name} must be an integer, not {value!r}")
    return int(result)


@dataclass
class Curve:
    """Losses over learning rates, smoothed, until they diverge.

    Attributes:
        smooth_f: share of the newest loss in the smoothed one, 0 for no smoothing. The average starts at the first
            loss, so it needs no bias correction.
        diverge_th: the smoothed loss has diverged above this many times its lowest value; None lets any loss pass.
        lrs, losses, smoothed: one entry for each learning rate; losses as measured, and their moving average.
        best: the lowest smoothed loss.
        stopped: why the curve ended, one of COMPLETED, DIVERGED, NOT_FINITE.
    """

    smooth_f: float = 0.05
    diverge_th: float | None = 5
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    best: float | None = None
    stopped: str = COMPLETED
    _last: float | None = field(default=None, init=False, repr=False)  # smoothed loss, skipping what is not finite
    _first: float = field(default=0.0, init=False, repr=False)
    _has_been_negative: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.smooth_f = number("smooth_f", self.smooth_f)
        self.diverge_th = None if self.diverge_th is None else number("diverge_th", self.diverge_th)
        if not 0 <= self.smooth_f < 1:
            raise ValueError("smooth_f is outside the range [0, 1[")
        if self.diverge_th is not None and not self.diverge_th >= 1:
            raise ValueError(f"diverge_th must be at least 1, or None to switch early stop off; not {self.diverge_th}")

    def add(self, lr: float, loss: float) -> bool:
        """Takes one more point; returns whether the test should go on."""
        self.lrs.append(lr)
        self.losses.append(loss)
        smooth = loss
        if self._last is not None and self.smooth_f > 0:
            smooth = self.smooth_f * loss + (1 - self.smooth_f) * self._last
        self.smoothed.append(smooth)
        if not math.isfinite(smooth):
            if self.diverge_th is not None:
                self.stopped = NOT_FINITE
            return self.diverge_th is None
        self._last = smooth
        self._has_been_negative = self._has_been_negative or loss < 0
        if self.best is None:
            self.best = self._first = smooth
        self.best = min(self.best, smooth)
        if self.diverge_th is not None and smooth > self._limit(self.diverge_th):
            self.stopped = DIVERGED
        return self.stopped == COMPLETED

    def _limit(self, diverge_th: float) -> float:
        assert self.best is not None
        if self.best > 0 and not self._has_been_negative:
            return diverge_th * self.best
        # A loss that takes both signs has no natural zero: `diverge_th * best` would lie below `best`. And above a loss
        # of exactly 0 everything would have diverged. The distance that it has fallen sets the scale instead.
        return self.best + (diverge_th - 1) * max(abs(self.best), self._first - self.best)


def group_ramps(
    bases: Sequence[Any],
    start_lr: Any,
    end_lr: Any,
    num_iter: int,
    step_mode: str,
    keep_ratio: bool,
) -> list[list[float]]:
    """The learning rates of each parameter group.

    Args:
        bases: the groups' own learning rates.
        start_lr: where the ramp begins; one for each group, one for all (with `keep_ratio`, for the first group), or
            None for the groups' own.
        end_lr: where it ends; with `keep_ratio` for the first group, else for every group.
        num_iter, step_mode: as in `ramp`.
        keep_ratio: whether the groups keep the ratios of their learning rates.

    Raises:
        ValueError: the range is empty, a learning rate is none, or a ratio does not exist; beside what `ramp` raises.
    """
    end = rate("end_lr", end_lr)
    several = _several(start_lr)
    if several is not None and len(several) != len(bases):
        raise ValueError(f"start_lr holds {len(several)} learning rates for {len(bases)} parameter groups")
    if several is not None:
        starts = [rate("start_lr", lr) for lr in several]
    elif start_lr is not None and (len(bases) == 1 or not keep_ratio):
        starts = [rate("start_lr", start_lr)] * len(bases)
    else:
        starts = [rate("the optimizer's learning rate", base) for base in bases]
    ratios = scales(starts) if keep_ratio else []
    start = starts[0] if several is not None or start_lr is None else rate("start_lr", start_lr)
    first = ramp(start, end, num_iter, step_mode)
    if not end > start:
        raise ValueError(f"end_lr must be larger than the learning rate of the start, {start:g}; it is {end:g}")
    if not keep_ratio:
        return [ramp(start, end, num_iter, step_mode) for start in starts]
    ramps = [first if scale == 1 else [scale * lr for lr in first] for scale in ratios]
    if not all(math.isfinite(lrs[-1]) for lrs in ramps):
        raise ValueError(f"the groups' learning rates are too different, by factors of {ratios}; list them in start_lr")
    return ramps


def _several(start_lr: Any) -> Sequence[Any] | None:
    """A learning rate for each group, of a list, a tuple, a tensor or an array; None where there is one for all."""
    if getattr(start_lr, "ndim", 0):
        values: list[Any] = start_lr.tolist()
        return values
    return start_lr if isinstance(start_lr, Sequence) and not isinstance(start_lr, str) else None


def scales(lrs: Sequence[float]) -> list[float]:
    """The learning rates of the parameter groups relative to the first group's."""
    if lrs[0] == 0 and any(lrs):
        raise ValueError("the first parameter group has learning rate 0, which no other has a ratio to; give it one")
    return [1.0 if lr == lrs[0] else lr / lrs[0] for lr in lrs]
