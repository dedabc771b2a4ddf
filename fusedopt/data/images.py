"""What every image data set of the examples looks like in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class DataError(RuntimeError):
    """A data set is missing, damaged or cannot be fetched; the message names the file and what to do."""


@dataclass(frozen=True)
class ImageData:
    """A small image classification data set, held in memory as bytes.

    Attributes:
        name: as the user knows it.
        classes: the names of the labels 0, 1, ...
        train_images, test_images: uint8 [N, C, H, W].
        train_labels, test_labels: int64 [N].
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Normalize:
    """Turns uint8 images into float32 ones with mean 0 and standard deviation 1 per channel.

    Mean and standard deviation are those of the images given, which should be the training images, over all pixels of
    a channel. A constant channel is only centred.

    Args:
        images: uint8 [N, C, H, W], N > 0.
    """

    def __init__(self, images: Tensor) -> None:
        std, mean = torch.std_mean(images.float(), dim=(0, 2, 3), correction=0, keepdim=True)
        self.mean = mean
        self.scale = torch.where(std > 0, std, 1.0).reciprocal()

    def __call__(self, images: Tensor) -> Tensor:
        """Returns float32 [B, C, H, W] for uint8 [B, C, H, W]."""
        return (images.float() - self.mean).mul_(self.scale)
