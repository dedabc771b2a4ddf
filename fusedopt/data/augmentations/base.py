"""What an augmentation is: it changes a batch of images where the batch is, each image in its own random way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Augmentation(ABC):
    """Changes a batch of images, and their targets where images are mixed.

    All randomness comes from the generator that is given, and each image draws numbers of its own: the same state of
    the generator gives the same batch.
    """

    @abstractmethod
    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns new images and targets; those given are not written.

        Args:
            images: float [B, C, H, W], from 0 to 1.
            targets: int64 [B], labels, or float [B, classes], probabilities.
            generator: on the images' device.

        Returns:
            Images float [B, C, H', W'], and the targets, as probabilities float [B, classes] where images are mixed.
        """


class ImageAugmentation(Augmentation):
    """One that leaves the targets as they are."""

    @abstractmethod
    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns new images [B, C, H', W'] for [B, C, H, W]."""

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns new images and the same targets; see `Augmentation`."""
        return self.change(images, generator), targets


class Compose(Augmentation):
    """One after the other, in the order given."""

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        self.augmentations = tuple(augmentations)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns images and targets after the last one; see `Augmentation`."""
        for augmentation in self.augmentations:
            images, targets = augmentation(images, targets, generator)
        return images, targets

    def __repr__(self) -> str:
        return f"Compose({list(self.augmentations)})"


def uniform(images: Tensor, low: float, high: float, generator: torch.Generator, *shape: int) -> Tensor:
    """Draws [B, *shape] numbers between `low` and `high` for a batch of images [B, ...], of their dtype and device."""
    check_floating(images)
    drawn = torch.rand(len(images), *shape, generator=generator, dtype=images.dtype, device=images.device)
    return drawn.mul_(high - low).add_(low)


def chance(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Draws for each image of a batch whether it is changed: bool [B, 1, 1, 1], true with probability `p`."""
    return uniform(images, 0, 1, generator, 1, 1, 1) < p


def probabilities(targets: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Turns labels int64 [B] into probabilities [B, classes]; those that are it already are returned."""
    return targets if targets.is_floating_point() else F.one_hot(targets, classes).to(dtype)


def box_mask(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Returns bool [B, 1, H, W], true in each image's box: `top` to `bottom`, `left` to `right` [B], ends exclusive."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    top, left, bottom, right = (edge[:, None, None, None] for edge in (top, left, bottom, right))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def check_floating(images: Tensor) -> None:
    """Refuses images that are not from 0 to 1.

    Raises:
        ValueError: they are integers.
    """
    if not images.is_floating_point():
        raise ValueError(f"augmentations take floating-point images from 0 to 1, not {images.dtype}; divide by 255")


def check_probability(name: str, value: float) -> None:
    """Refuses what is no probability.

    Raises:
        ValueError: the value is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")


def check_not_negative(**values: float) -> None:
    """Refuses negative values and NaN.

    Raises:
        ValueError: a value is below 0; the message names it.
    """
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, not {value}")
