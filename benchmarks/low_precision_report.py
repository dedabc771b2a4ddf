"""The table and the picture of `low_precision.py`."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from low_precision_training import FORMATS, OPTIMIZERS, SUBJECTS, Run

REFERENCE = "float32"
# Of each format a colour and a marker: parameters in float32 are circles, in bfloat16 squares, with masters diamonds.
LOOKS = {
    "float32": ("#222222", "o"),
    "8bit": ("#d1495b", "o"),
    "8bit-stochastic": ("#edae49", "o"),
    "masters": ("#3d5a6c", "D"),
    "masters-8bit": ("#d1495b", "D"),
    "bfloat16": ("#8ba4b2", "s"),
    "stochastic": ("#edae49", "s"),
}


@dataclass(frozen=True)
class Cell:
    """The runs of one task, optimizer and format.

    Attributes:
        mean, spread: of the scores, which are accuracies in percent or losses in nats. The spread is their standard
            deviation; a single run has none.
        bytes: for each parameter.
        is_loss: whether less is better.
    """

    mean: float
    spread: float | None
    bytes: float
    is_loss: bool

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Cell":
        """Makes one of at least one run."""
        is_loss = SUBJECTS[runs[0].task].is_loss
        scores = [run.score if is_loss else 100 * run.score for run in runs]
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else None  # of a diverged one too, as stdev is not
        return cls(statistics.mean(scores), spread, statistics.mean(run.bytes_per_parameter for run in runs), is_loss)

    def __str__(self) -> str:
        digits = 3 if self.is_loss else 1
        mean = f"{self.mean:.{digits}f}"
        return mean if self.spread is None else f"{mean} ± {self.spread:.{digits}f}"

    def is_worse(self, reference: "Cell") -> bool:
        """Whether it is worse by more than both spreads together, that of the difference of two runs."""
        if self.spread is None or reference.spread is None:
            return False
        worse = self.mean - reference.mean if self.is_loss else reference.mean - self.mean
        return not worse <= math.hypot(self.spread, reference.spread)  # what is no number is worse


def cells_of(runs: Iterable[Run]) -> dict[tuple[str, str, str], Cell]:
    """Returns the cells by task, optimizer and format, in the order of these."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key[:3], []).append(run)
    order = [(task, optimizer, name) for task in SUBJECTS for optimizer in OPTIMIZERS for name in FORMATS]
    return {key: Cell.of(groups[key]) for key in order if key in groups}


def markdown(runs: Sequence[Run]) -> str:
    """Returns a row for each task and format; in bold what is worse than float32, see `Cell.is_worse`."""
    cells = cells_of(runs)
    optimizers = [name for name in OPTIMIZERS if any(key[1] == name for key in cells)]
    heads = "".join(f" {OPTIMIZERS[name]} | bytes |" for name in optimizers)
    lines = [f"| | stored in |{heads}", f"| --- | --- |{' ---: | ---: |' * len(optimizers)}"]
    for task, name in dict.fromkeys((task, name) for task, _, name in sorted(cells, key=_row)):
        row = ""
        for optimizer in optimizers:
            cell, reference = cells.get((task, optimizer, name)), cells.get((task, optimizer, REFERENCE))
            shown = str(cell or "")
            if cell and reference and name != REFERENCE and cell.is_worse(reference):
                shown = f"**{shown}**"
            row += f" {shown} | {f'{cell.bytes:.1f}' if cell else ''} |"
        lines.append(f"| {SUBJECTS[task].title} | {FORMATS[name].title} |{row}")
    return "\n".join(lines)


def _row(key: tuple[str, str, str]) -> tuple[int, int]:
    return list(SUBJECTS).index(key[0]), list(FORMATS).index(key[2])


def differences(runs: Sequence[Run]) -> str:
    """Returns what each format differs from float32 by, with the same task, optimizer and seed; a row for each format.

    The mean over optimizers and seeds, and its standard error. In bold what is worse by more than two of these.
    """
    scores = {run.key: run.score * (1 if SUBJECTS[run.task].is_loss else 100) for run in runs}
    tasks = [task for task in SUBJECTS if any(key[0] == task for key in scores)]
    units = {task: "nats" if SUBJECTS[task].is_loss else "points" for task in tasks}
    lines = ["| stored in |" + "".join(f" {SUBJECTS[task].title}, {units[task]} |" for task in tasks)]
    lines.append("| --- |" + " ---: |" * len(tasks))
    for name in FORMATS:
        row = ""
        for task in tasks:
            keys = [key for key in scores if key[::2] == (task, name)]
            pairs = [(scores[key], scores.get((*key[:2], REFERENCE, key[3]))) for key in keys]
            shown = _difference([score - other for score, other in pairs if other is not None], SUBJECTS[task].is_loss)
            row += f" {shown} |"
        if name != REFERENCE and row.strip(" |"):
            lines.append(f"| {FORMATS[name].title} |{row}")
    return "\n".join(lines)


def _difference(values: Sequence[float], is_loss: bool) -> str:
    if len(values) < 2:
        return ""
    mean, error = statistics.mean(values), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    digits = 3 if is_loss else 1
    shown = f"{mean:+.{digits}f} ± {error:.{digits}f}"
    return shown if (mean if is_loss else -mean) <= 2 * error else f"**{shown}**"


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draws a panel for each task and optimizer, the scores against the bytes; needs matplotlib."""
    from matplotlib.figure import Figure

    cells = cells_of(runs)
    tasks, optimizers = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    figure = Figure(figsize=(1 + 3.4 * len(tasks), 1.6 + 2.5 * len(optimizers)), layout="constrained")
    panels = figure.subplots(len(optimizers), len(tasks), squeeze=False)
    handles: dict[str, Any] = {}
    for line, optimizer in zip(panels, optimizers, strict=True):
        for axes, task in zip(line, tasks, strict=True):
            handles |= _draw_panel(axes, {k[2]: cell for k, cell in cells.items() if k[:2] == (task, optimizer)})
            if optimizer == optimizers[0]:
                scores = "held-out loss (nats)" if SUBJECTS[task].is_loss else "test accuracy (%)"
                axes.set_title(f"{SUBJECTS[task].title}: {scores}")
            if optimizer == optimizers[-1]:
                axes.set_xlabel("bytes per parameter")
        line[0].annotate(
            OPTIMIZERS[optimizer],
            (-0.34, 0.5),
            xycoords="axes fraction",
            rotation=90,
            va="center",
            ha="center",
            size=12,
        )
    shown = [name for name in LOOKS if name in handles]
    figure.legend(
        [handles[name] for name in shown],
        [FORMATS[name].title for name in shown],
        loc="outside lower center",
        ncols=min(4, len(shown)),
        frameon=False,
    )
    seeds = len({run.seed for run in runs})
    figure.suptitle(
        "What is learned, against the bytes of parameters and states: up is better, left is smaller\n"
        f"mean and standard deviation of {seeds} seed{'s' * (seeds > 1)}; the band is that of float32",
        fontsize=11,
    )
    figure.savefig(path, dpi=100)


def _draw_panel(axes: Any, cells: dict[str, Cell]) -> dict[str, Any]:
    """Draws one task and optimizer; returns the handles of the legend."""
    if not cells:
        axes.set_axis_off()
        return {}
    if next(iter(cells.values())).is_loss:
        axes.invert_yaxis()
    if reference := cells.get(REFERENCE):
        spread = reference.spread or 0.0
        axes.axhspan(reference.mean - spread, reference.mean + spread, color="#eeeeee", zorder=0)
        axes.axhline(reference.mean, color="#bbbbbb", linewidth=0.8, zorder=0)
    handles = {}
    for name, x in _side_by_side({name: cells[name].bytes for name in LOOKS if name in cells}).items():
        colour, marker = LOOKS[name]
        handles[name] = axes.errorbar(
            x,
            cells[name].mean,
            cells[name].spread,
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.2,
            linestyle="none",
        )
    axes.set_xlim(3, 13.5)
    axes.set_xticks([4, 6, 8, 10, 12])
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _side_by_side(places: dict[str, float], gap: float = 0.4, near: float = 0.6) -> dict[str, float]:
    """Moves what is at nearly the same place apart, around the middle of it."""
    names = sorted(places, key=places.__getitem__)
    clusters = [names[:1]]
    for before, name in pairwise(names):
        if places[name] - places[before] > near:
            clusters.append([])
        clusters[-1].append(name)
    return {
        name: statistics.mean(places[n] for n in cluster) + gap * (i - (len(cluster) - 1) / 2)
        for cluster in clusters
        for i, name in enumerate(cluster)
    }
