"""Augmentations that hide a part of each image: random erasing and CutOut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusedopt.data.augmentations.base import (
    ImageAugmentation,
    box_mask,
    chance,
    check_floating,
    check_probability,
    uniform,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)


@dataclass(frozen=True)
class RandomErasing(ImageAugmentation):
    """Overwrites a rectangle with probability `p`.

    Its area is a share of the image between `scale[0]` and `scale[1]`, its ratio of height to width lies between
    `ratio[0]` and `ratio[1]` (uniform in the logarithm); what does not fit is cut to the image's side. `fill` says
    with what: random values, ImageNet's mean colour, or a value.

    Source: Zhong et al., "Random Erasing Data Augmentation", 2017, https://arxiv.org/abs/1708.04896.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: Literal["random", "imagenet-mean"] | float = "random"

    def __post_init__(self) -> None:
        check_probability("p", self.p)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares of the image in order, above 0 and up to 1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two positive numbers in order, not {self.ratio}")
        if isinstance(self.fill, str) and self.fill not in ("random", "imagenet-mean"):
            raise ValueError(f"fill must be 'random', 'imagenet-mean' or a number, not {self.fill!r}")

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""
        height, width = images.shape[-2:]
        area = uniform(images, *self.scale, generator) * (height * width)
        ratio = uniform(images, math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp()
        high = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top = (uniform(images, 0, 1, generator) * (height - high + 1)).floor()
        left = (uniform(images, 0, 1, generator) * (width - wide + 1)).floor()
        mask = box_mask(images, top, left, top + high, left + wide) & chance(images, self.p, generator)
        return torch.where(mask, self._values(images, generator), images)

    def _values(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.fill == "random":
            return torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
        if isinstance(self.fill, str):
            mean = images.new_tensor(IMAGENET_MEAN)
            return (mean if images.shape[1] == len(mean) else mean.mean(dim=0, keepdim=True))[:, None, None]
        return images.new_tensor(self.fill)


@dataclass(frozen=True)
class CutOut(ImageAugmentation):
    """Overwrites a square of `size` pixels around a random pixel; it may reach over the border, and is cut there.

    By default with the batch's mean colour, which standardization turns into about 0, as in the paper.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
    https://arxiv.org/abs/1708.04552.
    """

    size: int = 8
    fill: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""
        height, width = images.shape[-2:]
        top, left = (
            torch.randint(n, (len(images),), generator=generator, device=images.device) - self.size // 2
            for n in (height, width)
        )
        mask = box_mask(images, top, left, top + self.size, left + self.size)
        check_floating(images)
        fill = images.mean(dim=(0, 2, 3))[:, None, None] if self.fill is None else images.new_tensor(self.fill)
        return torch.where(mask, fill, images)
