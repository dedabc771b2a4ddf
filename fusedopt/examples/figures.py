"""The demo's picture of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fusedopt.extras import named_if_missing
from fusedopt.reports import write_picture
from fusedopt.training import Epoch

with named_if_missing():
    from matplotlib.figure import Figure, SubFigure  # without pyplot: nothing global changes, and no display is needed

_OURS = "#1f6fb4"
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
            style = {"color": _OURS, "linewidth": 2.5}
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
    sheet.suptitle(
        f"The first test images and their predictions after the last epoch; {wrong} of {len(truth)} are wrong"
    )
    cells = list(sheet.subplots(_SHEET_ROWS, _SHEET_COLUMNS).flat)
    for axes in cells:
        axes.axis("off")
    for axes, image, label, guess in zip(cells, images, truth.tolist(), predicted.tolist(), strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy())
        text = classes[guess] if guess == label else f"{classes[guess]}, is {classes[label]}"
        axes.set_title(text, fontsize=10, color="black" if guess == label else "crimson", pad=3)
    write_picture(figure, path)
