"""A bar chart of a run: each implementation's speed relative to the fastest native one. Needs matplotlib.

python benchmarks/plot.py run.json run.png AdamW LAMB  # of what step.py --json has written, for these optimizers
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter
from report import Row, in_order

from fusedopt.benchmark.implementations import IMPLEMENTATIONS, OURS
from fusedopt.benchmark.parameter_sets import SETS
from fusedopt.benchmark.timing import Spread

COLOURS = dict(zip(IMPLEMENTATIONS, ("#d1495b", "#c9d1d6", "#8ba4b2", "#3d5a6c"), strict=True))
INK = "#222222"


def plot_ratios(rows: Sequence[Row], description: dict[str, Any], path: Path) -> None:
    """Draw a panel per optimizer, in it a group of bars per parameter set and in that a bar per implementation."""
    optimizers = in_order(row.optimizer for row in rows)
    sets = in_order(row.parameter_set for row in rows)
    figure, axes = pyplot.subplots(
        nrows=len(optimizers),
        figsize=(3 + 1.7 * len(sets), 1.4 + 2 * len(optimizers)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for axis, optimizer in zip(axes[:, 0], optimizers, strict=True):
        handles |= _draw_panel(axis, [row for row in rows if row.optimizer == optimizer], sets)
        axis.set_title(optimizer, loc="left", fontsize=10)
    axes[-1, 0].set_xticks(range(len(sets)), [SETS[name].title for name in sets])
    shown = [name for name in IMPLEMENTATIONS if name in handles]
    figure.legend([handles[name] for name in shown], shown, loc="outside lower center", ncols=len(shown), frameon=False)
    figure.suptitle(
        "Speed of a step, relative to the fastest native implementation (median and quartiles)\n"
        f"{description['cpu']}, {description['threads']} threads, PyTorch {description['torch']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=150, metadata={"Source": f"measured {description['date']}"})
    pyplot.close(figure)


def _draw_panel(axis: Axes, rows: Sequence[Row], sets: Sequence[str]) -> dict[str, Any]:
    """Draw one optimizer's bars; returns the legend's handles."""
    handles: dict[str, Any] = {}
    width = 0.8 / len(IMPLEMENTATIONS)
    for index, name in enumerate(IMPLEMENTATIONS):
        offset = (index - (len(IMPLEMENTATIONS) - 1) / 2) * width
        bars = [(sets.index(row.parameter_set) + offset, row.ratio) for row in rows if row.implementation == name]
        drawn = [(x, ratio) for x, ratio in bars if ratio is not None]
        if not drawn:
            continue
        x = [position for position, _ in drawn]
        medians = [ratio.median for _, ratio in drawn]
        below = [ratio.median - ratio.low for _, ratio in drawn]
        above = [ratio.high - ratio.median for _, ratio in drawn]
        # Bars start at 1, the fastest native implementation: up is faster, down is slower. The edge shows a bar of 1.
        handles[name] = axis.bar(
            x,
            [median - 1 for median in medians],
            width * 0.9,
            bottom=1,
            yerr=[below, above],
            color=COLOURS[name],
            edgecolor=COLOURS[name],
            linewidth=1.5,
            error_kw={"ecolor": INK, "elinewidth": 0.8},
        )
        if name == OURS:
            axis.bar_label(handles[name], labels=[f"{median:.3g}x" for median in medians], padding=4, fontsize=8)
    axis.set_yscale("log")
    axis.axhline(1, color=INK, linewidth=0.6, zorder=0)
    axis.grid(axis="y", which="both", linewidth=0.3)
    axis.set_axisbelow(True)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.margins(y=0.15)
    return handles


def main(recorded: str, picture: str, *optimizers: str) -> None:
    """Draw a run that was written to a file."""
    run = json.loads(Path(recorded).read_text())
    rows = [
        Row(**row | {"us": Spread(**row["us"]), "ratio": row["ratio"] and Spread(**row["ratio"])})
        for row in run["rows"]
        if row["optimizer"] in optimizers
    ]
    plot_ratios(rows, run["machine"], Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
