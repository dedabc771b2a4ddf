"""Learning rates read off the curve of a range test: pure functions of learning rates and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LEAST_FALL = 0.01  # of the losses' magnitude; a curve that falls by less is flat
_NOISE_FALL = 6.0  # standard deviations; noise alone spans 4 to 5 of them over a hundred points
_RISE = 3.0  # standard deviations
_SLIDE_WIDTH = 15
_SLIDE_THRESHOLD = 0.005


class FlatCurveError(ValueError):
    """The losses fall by too little, for all that is seen because most learning rates are too low."""


def suggest_lr(
    lrs: Sequence[float],
    losses: Sequence[float],
    method: str = "steepest",
    skip_start: int = 10,
    skip_end: int = 5,
    *,
    noise: float | None = None,
) -> float:
    """Reads a learning rate off a curve of losses over increasing learning rates.

    Points whose loss is not finite are left out first, and one at a learning rate of 0, which has no logarithm; then
    `skip_start` points at the start and `skip_end` at the end.

    Args:
        lrs: learning rates, at least 0 and increasing.
        losses: the loss at each, usually smoothed.
        method:
            "steepest": where the loss falls fastest per unit of log(lr), not beyond its minimum (torch_lr_finder,
            fastai 1; the limit is pytorch-ignite's).
            "valley": half-way along the longest decreasing subsequence (fastai 2, after ESRI's).
            "slide": where a window of 15 points, slid from the right, first finds equal slopes at its ends: before
            the loss blows up (fastai 2, after the Novetta interval slide rule).
            "minimum": a tenth of the learning rate of the lowest loss (fastai).
        skip_start: points to leave out at the start, where the loss is still settling.
        skip_end: points to leave out at the end, where it has diverged.
        noise: standard deviation of the losses around their trend, against which a fall is judged. By default it is
            estimated from neighbouring points, which is right for raw losses and too little for smoothed ones.

    Returns:
        The learning rate.

    Raises:
        ValueError: the curve does not support an answer (too short, flat, only rising), or an argument is wrong; the
            message says what to change.
    """
    check_method(method, skip_start, skip_end)
    x, y = np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"one loss per learning rate is needed, not {y.shape} losses for {x.shape} learning rates")
    if not (np.isfinite(x).all() and (x >= 0).all() and (np.diff(x) > 0).all()):
        raise ValueError("the learning rates must be finite, at least 0 and increasing")
    if len(y) and not np.isfinite(y).any():
        raise ValueError(
            f"no loss is finite, from the first at {x[0]:.2e} on: look at the data, the model's weights, the loss and "
            f"its precision; another range of learning rates will not help"
        )
    usable = np.isfinite(y) & (x > 0)
    x, y = x[usable], y[usable]
    if len(x) < skip_start + skip_end + 2:
        raise ValueError(
            f"{len(x)} finite losses are too few: with skip_start={skip_start} and skip_end={skip_end} it takes at "
            f"least {skip_start + skip_end + 2}; use more iterations (num_iter), a lower start_lr, or skip fewer"
        )
    inner = slice(skip_start, len(x) - skip_end)
    refuse_without_fall(y[inner], estimate_noise(y) if noise is None else noise, y[-1] if usable[-1] else np.inf)
    return float(METHODS[method](x[inner], y[inner]))


def check_method(method: str, skip_start: int, skip_end: int) -> None:
    """Raises ValueError where `suggest_lr` would for these arguments, whatever the curve."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    if skip_start < 0 or skip_end < 0:
        raise ValueError(f"skip_start and skip_end must be at least 0, not {skip_start} and {skip_end}")


def estimate_noise(losses: Sequence[float] | Array) -> float:
    """Standard deviation of independent noise on a smooth curve, from the finite losses' second differences."""
    y = np.asarray(losses, dtype=np.float64)
    y = y[np.isfinite(y)]
    if len(y) < 3:
        return 0.0
    return float(1.4826 * np.median(np.abs(y[1:-1] - (y[:-2] + y[2:]) / 2)) * np.sqrt(2 / 3))


def refuse_without_fall(losses: Array, noise: float, last: float) -> None:
    """Raises ValueError where the losses do not fall, from a maximum to a later minimum, by more than noise would.

    Args:
        losses: those that are looked at.
        noise: their standard deviation around their trend.
        last: the loss at the end, beyond what is looked at; infinite if it was not finite.
    """
    before_lowest = losses[: int(losses.argmin()) + 1]
    highest = float(before_lowest.max())
    fall, magnitude = highest - float(losses.min()), float(np.abs(before_lowest).max())
    advice = "start from a model that is not trained yet"
    if fall == 0:
        reason = "the loss never falls"
    elif fall < _LEAST_FALL * magnitude:
        reason = f"the curve is flat: the loss falls by {100 * fall / magnitude:.2g} % only"
    elif fall < _NOISE_FALL * noise:
        reason = f"the loss falls by {fall:.3g} only, which its noise of {noise:.2g} may do by chance"
        advice = "use larger batches, several steps per learning rate, or a validation set"
    else:
        return
    if losses.max() == losses.min():
        raise ValueError(f"{reason}; raise end_lr, or see that the optimizer holds the model's parameters")
    start, half = (float(np.median(losses[: max(len(losses) // part, 1)])) for part in (10, 2))
    rise = max(fall, _LEAST_FALL * magnitude, _RISE * noise)
    if half - start > rise:
        raise ValueError(f"{reason}; lower start_lr, since it rises from the start, or {advice}")
    diverged = last - highest > rise
    hint = "raise start_lr or num_iter, for more steps where it may fall" if diverged else "raise end_lr"
    raise FlatCurveError(f"{reason}; {hint}, or {advice}")


def steepest_fall(losses: Sequence[float]) -> int | None:
    """Where torch_lr_finder 0.2.2 sees the steepest gradient: the index of the least central difference of the losses.

    Per point, not per learning rate, and wherever the lowest loss is. None where no difference is finite.
    """
    with np.errstate(invalid="ignore"):
        slopes = np.gradient(np.asarray(losses, dtype=np.float64))
    slopes[~np.isfinite(slopes)] = np.inf  # there it would choose the first NaN, or the step back from an infinite loss
    return int(slopes.argmin()) if np.isfinite(slopes).any() else None


def _steepest(lrs: Array, losses: Array) -> float:
    x = np.log(lrs)
    lowest = int(losses.argmin())  # nothing beyond it: a loss may fall steeply, but not far, after it has exploded
    if np.allclose(np.diff(x), (x[-1] - x[0]) / (len(x) - 1), rtol=1e-6, atol=0):  # an exponential ramp
        return lrs[np.gradient(losses)[: lowest + 1].argmin()]  # type: ignore[no-any-return]
    # Slopes between points that are crowded in log(lr) would be mostly noise: even steps give each the same weight.
    even = np.linspace(x[0], x[-1], len(x))
    slopes = np.gradient(np.interp(even, x, losses))
    steepest = even[np.where(even <= x[lowest], slopes, np.inf).argmin()]
    return lrs[np.abs(x - steepest).argmin()]  # type: ignore[no-any-return]


def _valley(lrs: Array, losses: Array) -> float:
    lengths = np.ones(len(losses), dtype=np.int64)  # of the longest decreasing subsequence that ends at each point
    for i in range(1, len(losses)):
        lengths[i] += lengths[:i][losses[:i] > losses[i]].max(initial=0)
    end = int(lengths.argmax())
    start = end - int(lengths[end])
    third = (end - start) / 3
    return lrs[max(start + int(third) + int(third / 2), 0)]  # type: ignore[no-any-return]


def _slide(lrs: Array, losses: Array) -> float:
    if len(losses) <= _SLIDE_WIDTH:
        raise ValueError(
            f"{len(losses)} losses are too few for the slide rule, whose window is {_SLIDE_WIDTH} wide; "
            f"use more iterations (num_iter) or skip fewer"
        )
    slopes = np.gradient(losses)
    left = len(losses) - 1 - _SLIDE_WIDTH
    found = left
    while abs(slopes[left + _SLIDE_WIDTH] - slopes[left]) > _SLIDE_THRESHOLD:
        found = left
        left -= 1
        if left < 0:
            raise ValueError("the slope never settles from the end to the start; smooth the losses more (smooth_f)")
    if found > losses.argmin():
        raise ValueError(
            "the slope settles only beyond the lowest loss; lower end_lr, or leave early stop on (diverge_th)"
        )
    return lrs[found]  # type: ignore[no-any-return]


def _minimum(lrs: Array, losses: Array) -> float:
    return lrs[losses.argmin()] / 10  # type: ignore[no-any-return]


METHODS: dict[str, Callable[[Array, Array], float]] = {
    "steepest": _steepest,
    "valley": _valley,
    "slide": _slide,
    "minimum": _minimum,
}
