"""The demo's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fusedopt.examples.step_times import LABELS, NATIVE, OURS, Table, speedup
from fusedopt.extras import named_if_missing
from fusedopt.reports import write_picture
from fusedopt.training import OPTIMIZERS, Epoch
from fusedopt.training.timing import Timing

with named_if_missing():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure  # without pyplot: nothing global changes, and no display is needed

_COLORS = {OURS: "#1f6fb4", "for-loop": "#c9c9c9", "foreach": "#9a9a9a", "fused": "#6b6b6b"}
_SHEET_ROWS, _SHEET_COLUMNS = 4, 6


def plot_training(
    path: Path,
    runs: Mapping[str, Sequence[Epoch]],
    images: Tensor,
    truth: Tensor,
    predicted: Tensor,
    classes: Sequence[str],
) -> None:
    """Draws loss and test accuracy per epoch beside a sheet of test images with their predictions.

    Args:
        path: the picture to write.
        runs: the epochs of each optimizer; the first is drawn as a line, the others as marks on top.
        images: uint8 [N, 3, H, W]; the first 24 are shown.
        truth, predicted: int64 [N], labels.
        classes: names of the labels.
    """
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    curves, sheet = cast("list[SubFigure]", figure.subfigures(1, 2, width_ratios=(1, 1.35)))
    loss_axes, accuracy_axes = curves.subplots(2, 1, sharex=True)
    for number, (name, epochs) in enumerate(runs.items()):
        style: dict[str, Any] = {"color": "black", "linestyle": ":", "marker": "x"}
        if number == 0:
            style = {"color": _COLORS[OURS], "linewidth": 2.5}
        steps = range(1, len(epochs) + 1)
        loss_axes.plot(steps, [e.loss for e in epochs], label=name, **style)
        accuracy_axes.plot(steps, [100 * e.accuracy for e in epochs], label=name, **style)
    loss_axes.set(ylabel="training loss", title="Same weights at the start, same batches")
    loss_axes.set_ylim(bottom=0)
    accuracy_axes.set(ylabel="test accuracy (%)", xlabel="epoch")
    accuracy_axes.xaxis.get_major_locator().set_params(integer=True)
    loss_axes.legend(frameon=False)
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)

    wrong = int((truth != predicted).sum())
    sheet.suptitle(f"The first test images and their predictions; {wrong} of {len(truth)} test images are wrong")
    cells = list(sheet.subplots(_SHEET_ROWS, _SHEET_COLUMNS).flat)
    for axes in cells:
        axes.axis("off")
    for axes, image, label, guess in zip(cells, images, truth.tolist(), predicted.tolist(), strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy())
        text = classes[guess] if guess == label else f"{classes[guess]}, is {classes[label]}"
        axes.set_title(text, fontsize=10, color="black" if guess == label else "crimson", pad=3)
    write_picture(figure, path)


def plot_step_times(path: Path, table: Table, title: str) -> None:
    """Draws the median time per step as bars, one panel with a scale of its own per optimizer."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = list(figure.subplots((len(table) + 1) // 2, 2, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    footnote = ""
    for axes, (name, timings) in zip(panels, table.items(), strict=False):
        axes.axis("on")
        if not OPTIMIZERS[name].in_torch and len(timings) > 1:
            footnote = f"\n{LABELS[name]}: PyTorch has none; its bars are the benchmarks' version in PyTorch operations"
        _bars(axes, timings)
        ratio = speedup(timings)
        factor = f": {ratio:.1f}x" if ratio is not None else ""
        axes.set_title(LABELS[name] + factor, fontsize=12, loc="left", fontweight="bold")
    figure.suptitle(title, fontsize=11)
    caption = "median time of optimizer.step() in µs, whiskers: quartiles; the factor is fastest PyTorch / fusedopt"
    figure.supxlabel(caption + footnote, fontsize=10)
    write_picture(figure, path)


def _bars(axes: Axes, timings: Mapping[str, Timing]) -> None:
    names = [name for name in (OURS, *NATIVE) if name in timings]
    titles = [name if name == OURS else f"PyTorch {name}" for name in names]
    labels = [f"{title}  {timings[name].median:.0f} µs" for title, name in zip(titles, names, strict=True)]
    axes.set_yticks(range(len(names)), labels)
    for position, name in enumerate(names):
        median, (low, high) = timings[name].median, timings[name].quartiles
        whiskers = [[median - low], [high - median]]
        axes.barh(position, median, color=_COLORS[name], height=0.85, xerr=whiskers, ecolor="#333333")
    # By the medians: on a busy machine a quartile can lie far out, and would make the bars invisible.
    axes.set_xlim(0, 1.15 * max(timing.median for timing in timings.values()))
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
