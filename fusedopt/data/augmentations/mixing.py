"""Augmentations that put several images, and their labels, into one: Mixup, CutMix, mosaic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedopt.data.augmentations.base import (
    Augmentation,
    box_mask,
    chance,
    check_floating,
    check_probability,
    probabilities,
    uniform,
)


@dataclass(frozen=True)
class _Mix(Augmentation):
    """What mixing augmentations share: the number of classes, and how many of the images are mixed.

    Mixed targets are probabilities: each image's label counts by its share of the result.
    """

    classes: int
    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability("p", self.p)
        if self.classes < 1:
            raise ValueError(f"classes must be at least 1, not {self.classes}")


@dataclass(frozen=True)
class Mixup(_Mix):
    """Blends each image with another of the batch; the first one's share is drawn from Beta(`alpha`, `alpha`).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2017, https://arxiv.org/abs/1710.09412.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_alpha(self.alpha)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns [B, C, H, W] and probabilities [B, classes]."""
        share = torch.where(chance(images, self.p, generator), _beta(images, self.alpha, generator), 1)
        partner = _permutation(images, generator)
        targets = probabilities(targets, self.classes, images.dtype)
        mixed = torch.lerp(targets[partner], targets, share[:, 0, 0].to(targets.dtype))
        return torch.lerp(images[partner], images, share), mixed


@dataclass(frozen=True)
class CutMix(_Mix):
    """Replaces a rectangle of each image by that of another of the batch.

    The share that stays is drawn from Beta(`alpha`, `alpha`); the rectangle has the image's shape, lies around a random
    pixel and is cut at the border. Labels count by the pixels that are really there.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019,
    https://arxiv.org/abs/1905.04899.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_alpha(self.alpha)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns [B, C, H, W] and probabilities [B, classes]."""
        height, width = images.shape[-2:]
        side = (1 - _beta(images, self.alpha, generator)[:, 0, 0, 0]).sqrt()
        row, column = ((uniform(images, 0, 1, generator) * n).floor() for n in (height, width))
        high, wide = (side * height / 2).round(), (side * width / 2).round()
        mask = box_mask(images, row - high, column - wide, row + high, column + wide)
        mask = mask & chance(images, self.p, generator)
        partner = _permutation(images, generator)
        kept = 1 - mask.to(images.dtype).mean(dim=(1, 2, 3))[:, None]
        targets = probabilities(targets, self.classes, images.dtype)
        mixed = torch.lerp(targets[partner], targets, kept.to(targets.dtype))
        return torch.where(mask, images[partner], images), mixed


@dataclass(frozen=True)
class Mosaic(_Mix):
    """Puts four images, each shrunk to its quadrant, around a point in the middle half of the image.

    The image itself is at the top left, with three others of the batch. Labels count by the areas. The images are
    sampled bilinearly, without antialiasing.

    Source: Bochkovskiy et al., "YOLOv4: Optimal Speed and Accuracy of Object Detection", 2020,
    https://arxiv.org/abs/2004.10934; the labels as in Takahashi et al., "RICAP", 2018, https://arxiv.org/abs/1811.09030.
    """

    p: float = 0.5

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns [B, C, H, W] and probabilities [B, classes]."""
        chosen = chance(images, self.p, generator)
        sides = [_split(images, n, generator) for n in images.shape[-2:]]
        targets = probabilities(targets, self.classes, images.dtype)
        result, mixed = torch.zeros_like(images), torch.zeros_like(targets)
        for lower in (0, 1):
            for right in (0, 1):
                source = _permutation(images, generator) if lower or right else slice(None)
                (y, inside_y), (x, inside_x) = sides[0][lower], sides[1][right]
                shape = (-1, y.shape[1], x.shape[1])
                grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
                inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
                part = F.grid_sample(images[source], grid, padding_mode="border", align_corners=False)
                result = torch.where(inside, part, result)
                mixed = mixed + targets[source] * inside.to(images.dtype).mean(dim=(1, 2, 3))[:, None]
        return torch.where(chosen, result, images), torch.where(chosen[:, 0, 0], mixed, targets)


def _split(images: Tensor, length: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Splits a side between a quarter and three quarters, for each image.

    For both parts: where each of its pixels lies in an image that is shrunk to the part, from -1 to 1, and which pixels
    are in it; both [B, length].
    """
    middle = (uniform(images, 0.25, 0.75, generator, 1) * length).round()
    position = torch.arange(length, dtype=images.dtype, device=images.device)
    first = (2 * position + 1) / middle.clamp(min=1) - 1, position < middle
    second = (2 * (position - middle) + 1) / (length - middle).clamp(min=1) - 1, position >= middle
    return [first, second]


def _beta(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Draws [B, 1, 1, 1] numbers from Beta(alpha, alpha)."""
    check_floating(images)
    # What torch.distributions.Beta calls: the public class takes no generator. It has no half precision.
    dtype = torch.promote_types(images.dtype, torch.float32)
    both = torch._sample_dirichlet(images.new_full((len(images), 2), alpha, dtype=dtype), generator)
    return both[:, :1, None, None].to(images.dtype)


def _permutation(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator, device=images.device)


def _check_alpha(alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, not {alpha}")
