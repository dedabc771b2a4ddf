"""The contact sheet of the augmentations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusedopt.data import AUGMENTATIONS, ImageData, make_augmentation
from fusedopt.extras import named_if_missing

with named_if_missing():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure  # without pyplot: nothing global changes, and no display is needed

_COLUMNS = 10


def draw_augmentations(load: Callable[[], ImageData], names: Sequence[str] | None = None, seed: int = 0) -> Figure:
    """Draws ten training images in the first row, and below what each augmentation makes of them.

    Above a mixed image stand the two classes which it mostly counts as, in percent.

    Args:
        load: loads the data set; called once the names are known to be right.
        names: keys of `AUGMENTATIONS`; None is all of them.
        seed: of which images are shown, and of the augmentations.

    Raises:
        ValueError: a name is unknown.
        fusedopt.data.DataError: the data set cannot be loaded.
    """
    names = list(AUGMENTATIONS) if names is None else names
    for name in names:
        make_augmentation(name, classes=1)
    data = load()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train_labels), generator=generator)[:_COLUMNS]
    images, labels = data.train_images[chosen].float() / 255, data.train_labels[chosen]
    rows: list[tuple[str, Tensor, Tensor]] = [("original", images, labels)]
    for name in names:
        options = {"size": images.shape[-1] // 2} if name == "resize" else {}  # so that there is something to see
        augmentation = make_augmentation(name, len(data.classes), **options)
        rows.append((name, *augmentation(images, labels, torch.Generator().manual_seed(seed))))

    figure = Figure(figsize=(1.15 * _COLUMNS + 1.3, 1.32 * len(rows)), layout="constrained")
    cells = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for line, (name, changed, targets) in zip(cells, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, image, target in zip(line, changed, targets, strict=False):
            _show(axes, image, _caption(target, data.classes) if name == "original" or targets.dim() == 2 else "")
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=11)
    return figure


def _show(axes: Axes, image: Tensor, caption: str) -> None:
    pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_title(caption, fontsize=7, pad=2)


def _caption(target: Tensor, classes: Sequence[str]) -> str:
    if not target.is_floating_point():
        return classes[int(target)]
    shares = [(round(100 * share), name) for share, name in zip(target.tolist(), classes, strict=True)]
    return "\n".join(f"{share} % {name}" for share, name in sorted(shares, reverse=True)[:2] if share)
