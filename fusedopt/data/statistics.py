"""Mean and standard deviation of each channel of a whole data set, exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEVELS = 256


class ChannelStatistics(NamedTuple):
    """What images are standardized with, for pixel values from 0 to 1.

    Attributes:
        mean: float64 [C], over all pixels of all images.
        std: float64 [C], the square root of the mean squared distance from `mean`.
    """

    mean: Tensor
    std: Tensor


def channel_statistics(images: Tensor) -> ChannelStatistics:
    """Returns mean and standard deviation per channel over all pixels of all images.

    They are those of the data set: the mean of the images' own standard deviations, which is sometimes used instead,
    is smaller, since it leaves out that one image is brighter than the next. Counting the 256 values makes the result
    exact at any size of the set, and needs no copy of it in floating point.

    Args:
        images: uint8 [N, C, H, W].

    Raises:
        ValueError: the images are no bytes of this shape, or hold no pixel.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.numel():
        raise ValueError(
            f"images must be uint8 [N, C, H, W] with at least one pixel, not {images.dtype} {list(images.shape)}"
        )
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=_LEVELS) for channel in images.unbind(1)])
    share = counts.double().cpu() / counts[0].sum().item()
    levels = torch.arange(_LEVELS, dtype=torch.float64) / (_LEVELS - 1)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]).square()).sum(dim=1)
    return ChannelStatistics(mean, variance.sqrt())
