"""What was measured as a picture: a bar for each implementation."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from fusedopt.benchmark.implementations import OURS
from fusedopt.benchmark.measured import Measured
from fusedopt.benchmark.timing import Spread
from fusedopt.benchmark.words import duration, label, unit
from fusedopt.extras import named_if_missing

with named_if_missing():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure  # without pyplot: nothing global changes, and no display is needed

_COLORS = {OURS: "#1f6fb4", "for-loop": "#c9c9c9", "foreach": "#9a9a9a", "fused": "#6b6b6b"}
_OTHERS = "#c98a5a"
_REST = "#e9e4d8"


def plot_rows(
    measured: Sequence[Measured], path: Path, title: str, *, batch: int | None = None, busy: Container[str] = ()
) -> Figure:
    """Draws a panel for each optimizer: the step, and beside it the whole training step where that was timed.

    Args:
        measured: a row for each implementation.
        path: the picture to write.
        title: above all.
        batch: inputs of a whole training step, None where none was timed.
        busy: optimizers during which other processes were busy.
    """
    rows: dict[str, list[Measured]] = {}
    for row in measured:
        rows.setdefault(row.optimizer, []).append(row)
    trained = batch is not None
    columns = 2 if trained or len(rows) > 1 else 1
    count = len(rows) * (2 if trained else 1)
    figure = Figure(figsize=(5.5 * columns, 1.2 + 2.4 * -(-count // columns)), layout="constrained")
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    places = iter(panels)
    for name, own in rows.items():
        ours = next((row for row in own if row.implementation == OURS), None)
        factor = "" if ours is None or ours.ratio is None else f": {ours.ratio.median:.1f}x"
        factor = " (busy machine)" if name in busy else factor
        _bars(next(places), f"{name}{factor}", {row.implementation: row.seconds for row in own})
        if trained:
            _whole(next(places), f"training, batches of {batch}", own)
    figure.suptitle(title, fontsize=11)
    caption = "median time of optimizer.step(), whiskers: quartiles"
    if any(name not in busy for name in rows):
        caption += "; the factor is fastest PyTorch / fusedopt"
    if trained:
        caption += "\nright: the optimizer's part of a training step in colour, forward and backward in pale"
    if busy:
        caption += "\nbusy machine: other processes kept cores busy meanwhile, not to be quoted"
    figure.supxlabel(caption, fontsize=10)
    figure.savefig(path, dpi=110)
    return figure


def _bars(axes: Axes, title: str, spreads: Mapping[str, Spread]) -> None:
    _dress(axes, title, [f"{label(name)}  {duration(spread.median)}" for name, spread in spreads.items()])
    # Whiskers end within the axis, but not those of a busy machine that lie far out, and would make bars invisible.
    longest = max(spread.median for spread in spreads.values())
    factor = _scale(axes, min(max(1.15 * longest, *(1.05 * spread.high for spread in spreads.values())), 2.5 * longest))
    for position, (name, spread) in enumerate(spreads.items()):
        whiskers = [[factor * (spread.median - spread.low)], [factor * (spread.high - spread.median)]]
        color = _COLORS.get(name, _OTHERS)
        axes.barh(position, factor * spread.median, color=color, height=0.85, xerr=whiskers, ecolor="#333333")


def _whole(axes: Axes, title: str, rows: Sequence[Measured]) -> None:
    trained = [(row.implementation, row.training) for row in rows if row.training is not None]
    _dress(
        axes,
        title,
        [f"{label(name)}  {duration(whole.seconds.median)}, step {whole.share:.1%}" for name, whole in trained],
    )
    factor = _scale(axes, 1.05 * max(whole.seconds.median for _, whole in trained))
    for position, (name, whole) in enumerate(trained):
        step = factor * whole.step.median
        rest = factor * whole.seconds.median - step
        axes.barh(position, rest, color=_REST, height=0.85)
        axes.barh(position, step, left=rest, color=_COLORS.get(name, _OTHERS), height=0.85)


def _scale(axes: Axes, seconds: float) -> float:
    """Has the axis go to so many seconds, in a unit that suits them; returns the unit's number in a second."""
    name, factor = unit(seconds)
    axes.set_xlim(0, factor * seconds)
    axes.set_xlabel(name, fontsize=8)
    return factor


def _dress(axes: Axes, title: str, labels: Sequence[str]) -> None:
    axes.axis("on")
    axes.set_title(title, fontsize=12, loc="left", fontweight="bold")
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
