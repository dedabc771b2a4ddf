"""Augmentations that change pixels where they are: grayscale, colour jitter, noise, blur."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedopt.data.augmentations.base import (
    ImageAugmentation,
    chance,
    check_floating,
    check_not_negative,
    check_probability,
    uniform,
)

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it


def grayscale(images: Tensor) -> Tensor:
    """Returns the brightness [B, 1, H, W] of RGB or one-channel images [B, C, H, W].

    Raises:
        ValueError: the images have neither 3 channels nor 1.
    """
    if images.shape[1] == 1:
        return images
    if images.shape[1] != len(_LUMA):
        raise ValueError(f"colours need images of 3 channels, or of 1, not {images.shape[1]}")
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Grayscale(ImageAugmentation):
    """Takes the colours away with probability `p`; the channels stay three."""

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability("p", self.p)

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""
        return torch.where(chance(images, self.p, generator), grayscale(images), images)


@dataclass(frozen=True)
class ColorJitter(ImageAugmentation):
    """Changes brightness, contrast, saturation and hue, in this order.

    The first three are multiplied by a factor between 1 - x and 1 + x (at least 0); the hue is turned by a share of the
    circle between -`hue` and `hue`. One-channel images have neither saturation nor hue.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __post_init__(self) -> None:
        check_not_negative(brightness=self.brightness, contrast=self.contrast, saturation=self.saturation)
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must lie between 0 and 0.5, half the circle, not {self.hue}")

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""

        def factor(strength: float) -> Tensor:
            return uniform(images, max(0.0, 1 - strength), 1 + strength, generator, 1, 1, 1)

        brightness, contrast, saturation = factor(self.brightness), factor(self.contrast), factor(self.saturation)
        turn = uniform(images, -self.hue, self.hue, generator, 1, 1)
        images = (images * brightness).clamp_(0, 1)
        gray = grayscale(images).mean(dim=(1, 2, 3), keepdim=True)
        images = torch.lerp(gray, images, contrast).clamp_(0, 1)
        if images.shape[1] == 1:
            return images
        images = torch.lerp(grayscale(images), images, saturation).clamp_(0, 1)
        return turn_hue(images, turn) if self.hue else images


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue of RGB images [B, 3, H, W] by `turn` [B, 1, 1], a share of the colour circle.

    Source: Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978: the hexcone of hue, saturation and value.
    """
    red, green, blue = images.unbind(1)
    value, low = images.amax(dim=1), images.amin(dim=1)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * turn
    # Each channel is a trapezoid over the circle, a third of it apart from the next.
    sector = torch.stack([(hue + offset).remainder(6) for offset in (5, 3, 1)], dim=1)
    return value[:, None] - chroma[:, None] * torch.minimum(sector, 4 - sector).clamp_(0, 1)


@dataclass(frozen=True)
class GaussianNoise(ImageAugmentation):
    """Adds normally distributed noise of standard deviation `std` to each pixel; the result stays within 0 and 1."""

    std: float = 0.05

    def __post_init__(self) -> None:
        check_not_negative(std=self.std)

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""
        check_floating(images)
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
        return (images + self.std * noise).clamp_(0, 1)


@dataclass(frozen=True)
class GaussianBlur(ImageAugmentation):
    """Blurs with a Gaussian whose standard deviation lies between `low` and `high` pixels."""

    kernel_size: int = 5
    low: float = 0.1
    high: float = 1.5

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, not {self.kernel_size}")
        if not 0 < self.low <= self.high:
            raise ValueError(f"low and high must be above 0 and in this order, not {self.low} and {self.high}")

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""
        return blur(images, uniform(images, self.low, self.high, generator), self.kernel_size)


def blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blurs each image [B, C, H, W] with its own Gaussian of standard deviation `sigma` [B]; mirrors at the border.

    Raises:
        ValueError: the images are too small to be mirrored that far.
    """
    radius = kernel_size // 2
    if min(images.shape[2:]) <= radius:
        size = "x".join(map(str, images.shape[2:]))
        raise ValueError(f"images of {size} pixels are too small to be blurred with a kernel of {kernel_size}")
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = (-0.5 * (offsets / sigma[:, None]).square()).softmax(dim=1)
    kernel = kernel.repeat_interleave(images.shape[1], dim=0)[:, None]
    count, channels = images.shape[:2]
    groups = count * channels  # a convolution of its own for each channel of each image
    flat = F.pad(images, [radius] * 4, mode="reflect").reshape(1, groups, *(n + 2 * radius for n in images.shape[2:]))
    flat = F.conv2d(flat, kernel[..., None], groups=groups)
    return F.conv2d(flat, kernel[:, :, None], groups=groups).view_as(images)
