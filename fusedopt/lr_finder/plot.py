"""The picture of a range test."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fusedopt.lr_finder.curve import COMPLETED, DIVERGED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVE, _CHOSEN = "#1f6fb4", "#d62728"
_MARKERS = {"steepest": "o", "valley": "s", "slide": "D", "minimum": "v"}
_COLORS = {"steepest": "#e6851e", "valley": "#2a9d4a", "slide": "#8a5cc2", "minimum": "#6d4c41"}


def new_axes() -> Axes:
    """Axes of a new pyplot figure, so that `plt.show()` shows them."""
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        message = "plots of the LR finder need matplotlib: pip install matplotlib, or pip install 'fusedopt[examples]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    _, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    return ax


def plot_test(
    ax: Axes,
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    *,
    looked_at: slice,
    stopped: str,
    suggestions: Mapping[str, float],
    method: str,
    refusal: str | None,
) -> Axes:
    """Draws a range test; see `LRFinderResult.plot`."""
    ax.scatter(lrs, losses, s=9, color="#b5b5b5", label="loss of each step", zorder=1)
    ax.plot(lrs, smoothed, color=_CURVE, linewidth=1.2, alpha=0.55, linestyle=":", zorder=2)
    ax.plot(lrs[looked_at], smoothed[looked_at], color=_CURVE, linewidth=2.2, label="smoothed", zorder=2)
    _mark_suggestions(ax, lrs, smoothed, suggestions, method)
    if method in suggestions:
        ax.axvline(suggestions[method], color=_CHOSEN, linewidth=1, linestyle="--", alpha=0.6, zorder=0)
    _frame(ax, losses, smoothed)
    _mark_divergence(ax, lrs, smoothed, stopped)
    decorate(ax, log_lr=True)
    if refusal is not None:
        ax.set_title(f"No suggestion: {re.split('[:;]', refusal)[0]}", fontsize=10, color=_CHOSEN)
    ax.legend(frameon=False, fontsize=9)
    return ax


def _mark_suggestions(
    ax: Axes, lrs: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float], chosen: str
) -> None:
    """Marks and names each suggestion on the curve of losses."""
    usable = np.isfinite(losses) & (np.array(lrs) > 0)
    x, y = np.log(np.array(lrs)[usable]), np.array(losses)[usable]
    for method, lr in sorted(suggestions.items(), key=lambda item: item[1]):
        is_chosen = method == chosen
        ax.scatter(
            lr,
            float(np.interp(math.log(lr), x, y)),
            s=110 if is_chosen else 60,
            marker=_MARKERS[method],
            color=_CHOSEN if is_chosen else _COLORS[method],
            edgecolor="white",
            zorder=4 if is_chosen else 3,
            label=f"{method}: {lr:.2e}" + ("  (suggested)" if is_chosen else ""),
        )


def _mark_divergence(ax: Axes, lrs: Sequence[float], losses: Sequence[float], stopped: str) -> None:
    """Marks the end of a test that ended early, at the upper edge where the loss is beyond it."""
    finite = np.flatnonzero(np.isfinite(losses))
    if stopped == COMPLETED or not len(finite):
        return
    lr = lrs[-1]
    name = f"diverged at {lr:.2e}" if stopped == DIVERGED else f"not finite at {lr:.2e}"
    height = min(losses[finite[-1]], ax.get_ylim()[1])
    ax.scatter(lr, height, s=80, marker="x", color="black", linewidth=2, zorder=3, clip_on=False, label=name)


def _frame(ax: Axes, losses: Sequence[float], smoothed: Sequence[float]) -> None:
    """Limits that show the fall: up to the losses of a diverging run it would be a flat line."""
    finite = [value for value in smoothed if math.isfinite(value)]
    if not finite:
        return
    start, low = finite[0], min([*finite, *(value for value in losses if math.isfinite(value))])
    top = min(max(finite), max(finite[: finite.index(min(finite)) + 1]) + max(start - low, 0.05 * abs(start)))
    margin = 0.06 * (top - low) or 0.1
    ax.set_ylim(low - margin, top + margin)


def decorate(ax: Axes, log_lr: bool) -> None:
    """Scale, labels and grid."""
    if log_lr:
        ax.set_xscale("log")
    ax.set_xlabel("Learning rate")
    ax.set_ylabel("Loss")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
