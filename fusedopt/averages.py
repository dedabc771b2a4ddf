"""Moving averages, plain and exponentially weighted: what Adam's `exp_avg` and `exp_avg_sq` are.

An exponentially weighted moving average (EWMA) is named by one of three numbers that say the same, always given by
keyword: `alpha`, the weight of the present value; `beta = 1 - alpha`, the weight of the past, as optimizers call it; or
`period`, the length N of the plain moving average of the same average age, `alpha = 2 / (N + 1)`.

Values are a sequence of numbers, a NumPy array or a tensor, with time along the first axis. A tensor gives a tensor on
its device, anything else a NumPy array. Floating dtypes are kept (half precision is averaged in float32 and rounded
once), integers become float64.

Source: D. Voigt Godoy, "Deep Learning with PyTorch Step-by-Step", volume II, chapter 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def alpha_from_period(period: float) -> float:
    """Returns 2 / (period + 1), for a period of at least 1."""
    if not period >= 1:
        raise ValueError(f"a period must be at least 1, not {period}")
    return 2 / (period + 1)


def period_from_alpha(alpha: float) -> float:
    """Returns 2 / alpha - 1, for 0 < alpha <= 1."""
    return 2 / _checked_alpha(alpha) - 1


def alpha_from_beta(beta: float) -> float:
    """Returns 1 - beta, for 0 <= beta < 1."""
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, not {beta}")
    return 1 - beta


def beta_from_alpha(alpha: float) -> float:
    """Returns 1 - alpha, for 0 < alpha <= 1."""
    return 1 - _checked_alpha(alpha)


def beta_from_period(period: float) -> float:
    """Returns (period - 1) / (period + 1), for a period of at least 1."""
    return 1 - alpha_from_period(period)


def period_from_beta(beta: float) -> float:
    """Returns (1 + beta) / (1 - beta), for 0 <= beta < 1."""
    return period_from_alpha(alpha_from_beta(beta))


def moving_average_age(period: int) -> float:
    """Returns (period + 1) / 2: how old the values in a moving average are on average, the present one being 1."""
    alpha_from_period(period)
    return (period + 1) / 2


def ewma_age(
    steps: int | None = None, *, alpha: float | None = None, beta: float | None = None, period: float | None = None
) -> float:
    """How old the values in an EWMA are on average, weighted by their weights, the present one being 1.

    Returns:
        alpha * sum over lag < steps of (1 - alpha)^lag (lag + 1), which tends to 1 / alpha; None is the limit.
    """
    alpha = _alpha(alpha, beta, period)
    if steps is None:
        return 1 / alpha
    if steps < 0:
        raise ValueError(f"the number of steps must be at least 0, not {steps}")
    past = (1 - alpha) ** steps
    return (1 - past) / alpha - steps * past


@overload
def moving_average(values: Tensor, period: int) -> Tensor: ...
@overload
def moving_average(values: Array | Sequence[float], period: int) -> Array: ...
def moving_average(values: Tensor | Array | Sequence[float], period: int) -> Tensor | Array:
    """The mean of the last `period` values, from the first time that there are so many.

    Args:
        values: [T, ...].
        period: N, an integer with 1 <= N <= T.

    Returns:
        [T - N + 1, ...]; entry i is the mean of values[i : i + N].

    Raises:
        ValueError: the period is not an integer of 1 to T.
    """
    series = _series(values)
    if period != int(period) or not 1 <= period <= len(series):
        raise ValueError(f"the period must be an integer of 1 to {len(series)}, the number of values, not {period}")
    return _like(values, series.unfold(0, int(period), 1).mean(dim=-1))


@overload
def ewma(
    values: Tensor,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    period: float | None = None,
    corrected: bool = False,
) -> Tensor: ...
@overload
def ewma(
    values: Array | Sequence[float],
    *,
    alpha: float | None = None,
    beta: float | None = None,
    period: float | None = None,
    corrected: bool = False,
) -> Array: ...
def ewma(
    values: Tensor | Array | Sequence[float],
    *,
    alpha: float | None = None,
    beta: float | None = None,
    period: float | None = None,
    corrected: bool = False,
) -> Tensor | Array:
    """The exponentially weighted moving average, started at 0.

    average[t] = alpha * values[t] + (1 - alpha) * average[t - 1]

    Args:
        values: [T, ...], T > 0.
        alpha, beta, period: exactly one of them.
        corrected: divide out the bias towards the 0 at the start, as `correct_bias` does.

    Returns:
        [T, ...].

    Raises:
        ValueError: there are no values, not exactly one of the three is given, or it is out of range.
    """
    alpha = _alpha(alpha, beta, period)
    series = _series(values)
    average = torch.zeros_like(series[0])
    averages = []
    for value in series:
        average = alpha * value + (1 - alpha) * average
        averages.append(average)
    result = torch.stack(averages)
    return _like(values, _corrected(result, 1 - alpha) if corrected else result)


@overload
def correct_bias(
    averages: Tensor, *, alpha: float | None = None, beta: float | None = None, period: float | None = None
) -> Tensor: ...
@overload
def correct_bias(
    averages: Array | Sequence[float],
    *,
    alpha: float | None = None,
    beta: float | None = None,
    period: float | None = None,
) -> Array: ...
def correct_bias(
    averages: Tensor | Array | Sequence[float],
    *,
    alpha: float | None = None,
    beta: float | None = None,
    period: float | None = None,
) -> Tensor | Array:
    """Divides each average by the sum of its weights, average[t] / (1 - beta^t) with t = 1, 2, ...

    Args:
        averages: [T, ...], T > 0, as `ewma` returns them.
        alpha, beta, period: exactly one of them, the one the averages were made with.

    Returns:
        [T, ...].
    """
    return _like(averages, _corrected(_series(averages), 1 - _alpha(alpha, beta, period)))


def _corrected(averages: Tensor, beta: float) -> Tensor:
    # The weights are summed in float64: 1 - 0.999^t loses its digits in float32.
    times = torch.arange(1, len(averages) + 1, dtype=torch.float64, device=averages.device)
    weights = (1 - beta**times).to(averages.real.dtype)
    return averages / weights.view(-1, *(1,) * (averages.dim() - 1))


def _alpha(alpha: float | None, beta: float | None, period: float | None) -> float:
    if sum(value is not None for value in (alpha, beta, period)) != 1:
        raise ValueError("give exactly one of alpha, beta and period")
    if alpha is not None:
        return _checked_alpha(alpha)
    return alpha_from_beta(beta) if beta is not None else alpha_from_period(period or 0)


def _checked_alpha(alpha: float) -> float:
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, not {alpha}")
    return alpha


def _series(values: Tensor | Array | Sequence[float]) -> Tensor:
    series = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if series.dim() == 0 or len(series) == 0:
        raise ValueError("there must be at least one value, with time along the first axis")
    if not (series.is_floating_point() or series.is_complex()):
        return series.double()
    return series.float() if series.dtype in (torch.float16, torch.bfloat16) else series


def _like(values: Tensor | Array | Sequence[float], result: Tensor) -> Tensor | Array:
    if isinstance(values, Tensor):
        return result.to(values.dtype) if values.is_floating_point() else result
    array: Array = result.numpy()
    dtype = np.asarray(values).dtype
    return array.astype(dtype) if np.issubdtype(dtype, np.floating) else array
