"""What every image data set of the examples looks like in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusedopt.data.statistics import ChannelStatistics, channel_statistics

_WHITE = 255


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

    def __repr__(self) -> str:
        """What it is, without the images."""
        counts = f"{len(self.train_images):,} training and {len(self.test_images):,} test images"
        shape = "x".join(map(str, self.train_images.shape[1:]))
        return f"ImageData({self.name!r}: {counts} of {shape}, {len(self.classes)} classes)"


class Normalize:
    """Turns uint8 images into float32 ones with mean 0 and standard deviation 1 per channel.

    Mean and standard deviation are those of the images given, which should be the training images, over all pixels of
    a channel; see `channel_statistics`. A constant channel is only centred.

    Args:
        images: uint8 [N, C, H, W], N > 0.

    Attributes:
        mean, scale: float32 [1, C, 1, 1], for pixel values from 0 to 255.

    Raises:
        ValueError: `images` are no bytes of this shape, or none.
    """

    def __init__(self, images: Tensor) -> None:
        self._use(channel_statistics(images))
        self.to(images.device)

    @classmethod
    def with_statistics(cls, statistics: ChannelStatistics) -> Normalize:
        """Makes one from a mean and a standard deviation that are known, on the CPU."""
        normalize = cls.__new__(cls)
        normalize._use(statistics)
        return normalize

    def _use(self, statistics: ChannelStatistics) -> None:
        mean, std = statistics
        scale = torch.where(std > 0, std, 1.0).mul(_WHITE).reciprocal()
        self.mean, self.scale = (v.float()[:, None, None] for v in (mean * _WHITE, scale))

    def to(self, device: torch.device | str) -> Normalize:
        """Moves it to a device, in place, and returns it."""
        self.mean, self.scale = self.mean.to(device), self.scale.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Returns float32 [B, C, H, W] for [B, C, H, W] with values from 0 to 255, bytes or floating point."""
        return (images.float() - self.mean).mul_(self.scale)


def hold_out(data: ImageData, share: float, seed: int = 0) -> ImageData:
    """Splits the training images, so that choices can be made without looking at the test images.

    Args:
        data: a data set; it is not changed.
        share: of the training images that are held out, between 0 and 1. Of each class that share is taken.
        seed: of the choice.

    Returns:
        ImageData whose test images are those held out, and whose training images are the others.

    Raises:
        ValueError: the share leaves no image on one of the sides.
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(data.train_labels), dtype=torch.bool)
    for label in range(len(data.classes)):
        members = (data.train_labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        held[members[order[: round(share * len(members))]]] = True
    if not 0 < share < 1 or held.all() or not held.any():
        raise ValueError(f"a share of {share:g} of {len(held)} images leaves none to train on or none to test on")
    images, labels = data.train_images, data.train_labels
    return ImageData(data.name, data.classes, images[~held], labels[~held], images[held], labels[held])
