"""The filters of a layer and what it makes of images, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fusedopt.data import ImageData, Normalize

_MOST = 16  # rows and columns


def convolutions(model: nn.Module) -> list[str]:
    """Returns the names of the convolutions, in the order in which the network has them."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Returns a module of the network by its name, as in `named_modules`.

    Raises:
        ValueError: there is none; the message lists the convolutions, or where there is none all modules.
    """
    modules: dict[str, nn.Module] = {path: module for path, module in model.named_modules() if path}
    if name not in modules:
        known = ", ".join(convolutions(model) or modules)
        raise ValueError(f"the network has no layer {name!r}; choose one of {known}")
    return modules[name]


@torch.no_grad()
def outputs(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Returns the output of a layer for images float [N, C, H, W].

    Raises:
        ValueError: there is no such layer, or it runs several times for one image.
    """
    found: list[Tensor] = []
    hook = find_layer(model, layer).register_forward_hook(lambda module, inputs, output: found.append(output.clone()))
    try:
        model(images)
    finally:
        hook.remove()
    if len(found) != 1:
        reason = "runs several times" if len(found) > 1 else "gives no feature map"
        raise ValueError(f"layer {layer!r} {reason}; choose a convolution, or none for the last one")
    return found[0]


def feature_maps(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Returns the output [N, channels, h, w] of a layer for images float [N, C, H, W].

    Raises:
        ValueError: there is no such layer, or its output is no feature map, or it runs several times for one image.
    """
    maps = outputs(model, layer, images)
    if maps.dim() != 4 or maps.shape[2:].numel() == 1:
        raise ValueError(f"layer {layer!r} gives no feature map; choose a convolution, or none for the last one")
    return maps


def plot_filters(model: nn.Module, channels: int, size: int, layer: str | None = None) -> Figure:
    """Draws the filters of a convolution, or the weights of a linear layer that takes the pixels, as pictures.

    Filters over three colours are drawn in colour with grey for 0, all others with red for positive weights and blue
    for negative ones, a column for each input channel.

    Args:
        model: the network.
        channels, size: of its images.
        layer: name of the layer; None is the first convolution, or else the first linear layer.

    Raises:
        ValueError: there is no such layer, or it has no filters.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layer = layer or next(iter(convolutions(model) + linear), None)
    if layer is None:
        raise ValueError("the network has no convolution and no linear layer, and so no filters")
    module = find_layer(model, layer)
    if isinstance(module, nn.Conv2d):
        weights = module.weight.detach()
    elif isinstance(module, nn.Linear) and module.in_features == channels * size * size:
        weights = module.weight.detach().reshape(-1, channels, size, size)
    else:
        raise ValueError(f"layer {layer!r} has no filters; choose a convolution, or none for the first one")
    largest = float(weights.abs().max()) or 1.0
    kept = weights[: 4 * _MOST if weights.shape[1] in (1, 3) else _MOST, :_MOST]
    if weights.shape[1] == 3:
        pictures = [list((kept / (2 * largest) + 0.5).permute(0, 2, 3, 1))]
    else:
        pictures = [list(row) for row in kept]
    if len(pictures) == 1 or len(pictures[0]) == 1:  # one picture per filter: as many rows as they fill
        flat = [picture for row in pictures for picture in row]
        pictures = [flat[start : start + _MOST] for start in range(0, len(flat), _MOST)]
    shown = f"{len(kept)} of {len(weights)} filters" if len(kept) < len(weights) else f"{len(weights)} filters"
    if weights.shape[1] > _MOST:
        shown += f", {_MOST} of their {weights.shape[1]} channels"
    title = f"{shown} of layer {layer}, weights from {-largest:.2g} to {largest:.2g}"
    return _sheet(pictures, title, largest)


def plot_activations(
    model: nn.Module, data: ImageData, normalize: Normalize, *, seed: int = 0, layer: str | None = None
) -> Figure:
    """Draws the output of a layer, a row for one test image of each class, a column for each channel.

    Args:
        model: in evaluation mode, on the CPU.
        data, normalize: of the run.
        seed: of which images are shown.
        layer: name of the layer; None is the last convolution, or where there is none the last linear layer but one,
            each unit of which is a channel of one value.

    Raises:
        ValueError: there is no such layer, or it runs several times, or its output are no channels.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layer = layer or next(reversed(convolutions(model) or linear[:-1] or linear), None)
    if layer is None:
        raise ValueError("the network has no convolution and no linear layer, and so no activations to draw")
    order = torch.randperm(len(data.test_labels), generator=torch.Generator().manual_seed(seed))
    labels = data.test_labels[order].tolist()
    chosen = order[[labels.index(label) for label in sorted(set(labels))[:_MOST]]]
    images = data.test_images[chosen]
    maps = outputs(model, layer, normalize(images))
    if maps.dim() == 2:
        maps = maps[:, :, None, None]
    elif maps.dim() != 4:
        raise ValueError(f"layer {layer!r} gives no channels; choose a convolution or a linear layer")
    largest = float(maps.abs().max()) or 1.0
    kind = "channels" if maps.shape[2:].numel() > 1 else "units"
    shown = f"{_MOST} of {maps.shape[1]} {kind}" if maps.shape[1] > _MOST else f"{maps.shape[1]} {kind}"
    originals = [image.permute(1, 2, 0).squeeze(-1).float() / 255 for image in images]
    rows = [[original, *row[:_MOST]] for original, row in zip(originals, maps, strict=True)]
    names = [data.classes[label] for label in data.test_labels[chosen].tolist()]
    return _sheet(rows, f"Activations of layer {layer}, {shown}", largest, names)


def _sheet(rows: Sequence[Sequence[Tensor]], title: str, largest: float, names: Sequence[str] | None = None) -> Figure:
    """Draws pictures [H, W] on a scale from -largest to largest, or [H, W, 3]; with names, photographs come first."""
    columns = len(rows[0])
    margin = 0.0 if names is None else 1.0
    figure = Figure(figsize=(max(4.5, 0.62 * columns + margin), 0.62 * len(rows) + 0.6), layout="constrained")
    cells = figure.subplots(len(rows), columns, squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for number, (line, pictures) in enumerate(zip(cells, rows, strict=True)):
        for column, (axes, picture) in enumerate(zip(line, pictures, strict=False)):
            photograph = names is not None and column == 0
            low = 0.0 if photograph else -largest
            high = 1.0 if photograph else largest
            axes.imshow(picture.numpy(), cmap="gray" if photograph else "RdBu_r", vmin=low, vmax=high)
        if names is not None:
            line[0].text(-0.15, 0.5, names[number], transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure
