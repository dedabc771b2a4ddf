"""What a network looked at when it was wrong: Grad-CAM on misclassified images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from fusedopt.data import ImageData, Normalize
from fusedopt.extras import named_if_missing
from fusedopt.reports.evaluation import Evaluation
from fusedopt.reports.figures import NARROW
from fusedopt.reports.layers import convolutions, feature_maps, find_layer

_COLUMNS, _NARROW_COLUMNS = 5, 2


def pick_wrong(evaluation: Evaluation, count: int = 25, seed: int = 0) -> Tensor:
    """Returns indices int64 [<= count] of misclassified test images, drawn with the seed; all if there are fewer."""
    order = torch.randperm(len(evaluation.wrong), generator=torch.Generator().manual_seed(seed))
    return evaluation.wrong[order[:count]]


def attribute(model: nn.Module, images: Tensor, targets: Tensor, layer: str | None = None) -> tuple[str, Tensor]:
    """Says how much each pixel speaks for a class: Grad-CAM, or input gradients where there is no convolution.

    Grad-CAM weighs the channels of a layer by the mean gradient of the score with respect to them, and shows where
    their sum is positive, enlarged to the images (Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391). For a
    network without convolutions it is the largest absolute gradient over the channels of a pixel (Simonyan et al.,
    2014, https://arxiv.org/abs/1312.6034).

    Args:
        model: in evaluation mode; its gradients are left alone.
        images: float [N, C, H, W], standardized.
        targets: int64 [N], the classes.
        layer: name of a module whose output is [N, channels, h, w]; None is the last convolution, if there is one.

    Returns:
        What it is called, and float [N, 1, H, W], 0 to 1 for each image.

    Raises:
        ValueError: there is no such layer, or its output is no feature map.
        ModuleNotFoundError: captum is not installed.
    """
    with named_if_missing():
        from captum.attr import LayerAttribution, LayerGradCam, Saliency

    layer = layer or next(reversed(convolutions(model)), None)
    if layer is None:
        title = "input gradients"
        maps = Saliency(model).attribute(images.clone().requires_grad_(), target=targets).amax(dim=1, keepdim=True)
    else:
        feature_maps(model, layer, images[:1])  # refuses layers without one
        title = f"Grad-CAM, layer {layer}"
        coarse = LayerGradCam(model, find_layer(model, layer)).attribute(images, target=targets, relu_attributions=True)
        maps = LayerAttribution.interpolate(coarse, tuple(images.shape[2:]), interpolate_mode="bilinear")
    maps = maps.detach()
    return title, maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@dataclass(frozen=True)
class Attributions:
    """Misclassified test images, and what speaks for the class that was predicted of each."""

    method: str
    images: Tensor
    """uint8 [N, C, H, W]."""
    maps: Tensor
    """float [N, 1, H, W], see `attribute`."""
    names: list[str]
    """What is written over each image."""
    of: int
    """How many test images are misclassified in all."""

    def plot(self, *, narrow: bool = False) -> Figure:
        """Draws each image beside its map, five in a row, or two where ``narrow``, for a phone."""
        count = len(self.names)
        columns = min(_NARROW_COLUMNS if narrow else _COLUMNS, count)
        rows = -(-count // columns)
        size = (NARROW, 1.2 * rows + 0.6) if narrow else (max(7.5, 2.7 * columns), 1.5 * rows + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in cells:
            axes.axis("off")
        for axes, image, heat, name in zip(cells, self.images, self.maps, self.names, strict=False):
            _pair(axes, image, heat[0])
            axes.set_title(name, fontsize=8 if narrow else 10, color="crimson", pad=3)
        kind = f"{count} of {self.of} misclassified images"
        line = "\n" if narrow else " "
        title = f"{kind}, and what{line}speaks for the predicted class ({self.method})"
        figure.suptitle(title, fontsize=9 if narrow else 11)
        return figure


def attribute_wrong(
    model: nn.Module,
    data: ImageData,
    normalize: Normalize,
    evaluation: Evaluation,
    *,
    count: int = 25,
    seed: int = 0,
    layer: str | None = None,
) -> Attributions | None:
    """Says of misclassified test images what spoke for the class that was predicted.

    Args:
        model: in evaluation mode, on the CPU.
        data, normalize, evaluation: of the run; see `evaluate`.
        count, seed: how many images, and which; see `pick_wrong`.
        layer: see `attribute`.

    Returns:
        None where no test image is misclassified.

    Raises:
        ValueError, ModuleNotFoundError: see `attribute`.
    """
    chosen = pick_wrong(evaluation, count, seed)
    if layer is not None:
        find_layer(model, layer)  # refuses one that is not there, also where nothing is drawn
    if not len(chosen):
        return None
    images, predicted = data.test_images[chosen], evaluation.predicted[chosen]
    method, maps = attribute(model, normalize(images), predicted, layer)
    classes = zip(predicted.tolist(), data.test_labels[chosen].tolist(), strict=True)
    names = [f"{data.classes[guess]}, is {data.classes[label]}" for guess, label in classes]
    return Attributions(method, images, maps, names, len(evaluation.wrong))


def _pair(axes: Axes, image: Tensor, heat: Tensor) -> None:
    """Shows an image uint8 [C, H, W], and beside it the same in grey under a map [H, W]."""
    height, width = heat.shape
    gap = max(1, width // 14)
    for left, over in ((0, False), (width + gap, True)):
        extent = (left, left + width, height, 0)
        pixels = image.float().mean(dim=0) if over else image.permute(1, 2, 0).squeeze(-1)
        axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
        if over:
            axes.imshow(heat.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.6, extent=extent)
    axes.set(xlim=(0, 2 * width + gap), ylim=(height, 0))
