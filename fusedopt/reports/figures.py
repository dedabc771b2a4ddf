"""The pictures of a run: its curves, its confusion matrix and the accuracy of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure  # without pyplot: nothing global changes, and no display is needed
from matplotlib.ticker import MaxNLocator

from fusedopt.reports.evaluation import Evaluation

_TRAIN, _TEST, _RATE = "#9a9a9a", "#1f6fb4", "#3a7d44"
NARROW = 4.0
"""Width in inches of pictures for a phone, on whose screen their letters are then nearly as large as the text's."""
_MARKED = 20  # of fewer epochs each is marked
_PANELS = {  # title, and for each column of the log its factor, label and colour
    "loss": {"train_loss": (1, "training", _TRAIN), "test_loss": (1, "{tested}", _TEST)},
    "accuracy (%)": {"train_accuracy": (100, "training", _TRAIN), "test_accuracy": (100, "{tested}", _TEST)},
    "learning rate": {"lr": (1, "learning rate", _RATE)},
}
COLUMNS = [name for lines in _PANELS.values() for name in lines]
"""Of the log, that are drawn."""


def plot_curves(rows: Sequence[Mapping[str, float]], tested: str = "test", *, narrow: bool = False) -> Figure | None:
    """Draws loss, accuracy and learning rate per epoch, of those that the log has.

    Args:
        rows: of the log, see `fusedopt.training.RunFolder.append`.
        tested: what the images are called that were not trained on.
        narrow: draws them below each other, for a phone.

    Returns:
        The figure; None where the log has none of them.
    """
    logged = {name for row in rows for name in row}
    panels = {title: lines for title, lines in _PANELS.items() if logged & lines.keys()}
    if not panels:
        return None
    down, across = (len(panels), 1) if narrow else (1, len(panels))
    figure = Figure(figsize=(NARROW, 2.8 * down) if narrow else (4.6 * across, 3.8), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(down, across, squeeze=False).flat, panels.items(), strict=True):
        drawn: list[float] = []
        for name, (factor, label, color) in lines.items():
            epochs = [row["epoch"] for row in rows if name in row]
            values = [factor * row[name] for row in rows if name in row]
            if values:
                marker = "o" if len(values) < _MARKED else ""
                axes.plot(epochs, values, color=color, label=label.format(tested=tested), marker=marker, markersize=4)
                drawn += [value for value in values if math.isfinite(value)]
        axes.set(title=title, xlabel="epoch")
        axes.ticklabel_format(axis="y", useOffset=False)
        if drawn and 0 < 100 * min(drawn) < max(drawn):
            axes.set_yscale("log")
        elif title == "learning rate":
            axes.set_ylim(bottom=0)
        if len(axes.lines) > 1:
            axes.legend(frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_confusion(evaluation: Evaluation, *, narrow: bool = False) -> Figure:
    """Draws how many images of each class (rows) were taken for which class (columns).

    Colours are shares of a row, so that classes of any size can be compared; mistakes have a colour of their own.

    Args:
        evaluation: of the network.
        narrow: draws it for a phone, with smaller cells.
    """
    counts, names = evaluation.confusion, evaluation.classes
    size = len(names)
    side = max(NARROW, 0.31 * size + 0.9) if narrow else max(4.2, 0.62 * size + 1.8)
    figure = Figure(figsize=(side, side) if narrow else (side + 0.4, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    right = shares.diag().diag()
    for part, cmap in ((right, "Blues"), (shares - right, "Reds")):
        axes.imshow(part.where(part > 0, math.nan).numpy(), cmap=cmap, vmin=0, vmax=1.3)
    for row in range(size):
        for column in range(size):
            if count := int(counts[row, column]):
                color = "white" if shares[row, column] > 0.7 else "black"
                font = 6.5 if narrow and size > 5 else 10
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=font)
    axes.set_xticks(range(size), names, rotation=45 if size > 4 else 0, ha="right" if size > 4 else "center")
    axes.set_yticks(range(size), names)
    axes.set(xlabel="predicted", ylabel="true", title=f"{100 * evaluation.accuracy:.2f} % of the images are right")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks([edge - 0.5 for edge in range(size + 1)], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(size + 1)], minor=True)
    axes.grid(which="minor", color="#e4e4e4")
    axes.tick_params(which="minor", length=0)
    return figure


def plot_class_accuracy(evaluation: Evaluation, *, narrow: bool = False) -> Figure:
    """Draws the accuracy of each class as bars, and that of all images as a line.

    Args:
        evaluation: of the network.
        narrow: draws it for a phone.
    """
    shares = evaluation.class_accuracy
    figure = Figure(figsize=(NARROW if narrow else 7, max(2, 0.38 * len(shares) + 1)), layout="constrained")
    axes = figure.subplots()
    overall = 100 * evaluation.accuracy
    percent = [0 if math.isnan(share) else 100 * share for share in shares.values()]
    axes.barh(range(len(shares)), percent, color=_TEST, height=0.75)
    labels = ["no images" if math.isnan(share) else f"{100 * share:.1f} %" for share in shares.values()]
    axes.axvline(overall, color="black", linestyle=":", label=f"all: {overall:.1f} %")
    axes.set_yticks(range(len(shares)), [f"{name}  {label}" for name, label in zip(shares, labels, strict=True)])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy (%)", xlim=(0, 100))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure
