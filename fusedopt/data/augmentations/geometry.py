"""Augmentations that move pixels: pad, resize, rotate, flip, crop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedopt.data.augmentations.base import (
    ImageAugmentation,
    chance,
    check_not_negative,
    check_probability,
    uniform,
)


@dataclass(frozen=True)
class Pad(ImageAugmentation):
    """Adds `padding` pixels of the value `fill` on each side. The images grow, which not every network takes."""

    padding: int = 4
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(padding=self.padding)

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H + 2 padding, W + 2 padding]."""
        return F.pad(images, [self.padding] * 4, value=self.fill)


@dataclass(frozen=True)
class Resize(ImageAugmentation):
    """Resizes to `size` x `size` pixels, bilinear with antialiasing."""

    size: int = 28

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, size, size]."""
        # In half precision there is none on the CPU.
        exact = images.float() if images.dtype.itemsize == 2 else images
        return F.interpolate(exact, (self.size, self.size), mode="bilinear", antialias=True).to(images.dtype)


@dataclass(frozen=True)
class Rotate(ImageAugmentation):
    """Rotates about the centre by an angle between -`degrees` and `degrees`; pixels at the border are repeated."""

    degrees: float = 15.0

    def __post_init__(self) -> None:
        check_not_negative(degrees=self.degrees)

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""
        limit = math.radians(self.degrees)
        return rotate(images, uniform(images, -limit, limit, generator))


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotates each image [B, C, H, W] counterclockwise by its angle [B] in radians, bilinear."""
    height, width = images.shape[-2:]
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # The grid's coordinates run from -1 to 1 along both sides, whatever their length.
    rows = (cos, -sin * height / width, zero, sin * width / height, cos, zero)
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Flip(ImageAugmentation):
    """Mirrors left and right with probability `p`; `vertical` mirrors top and bottom instead."""

    p: float = 0.5
    vertical: bool = False

    def __post_init__(self) -> None:
        check_probability("p", self.p)

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, H, W]."""
        mirrored = images.flip(-2 if self.vertical else -1)
        return torch.where(chance(images, self.p, generator), mirrored, images)


@dataclass(frozen=True)
class Crop(ImageAugmentation):
    """Pads all sides by `padding` pixels of the value `fill`, then cuts `size` x `size` pixels out at a random place.

    By default the size is that of the images, and the pixels at the border are repeated.
    """

    size: int | None = None
    padding: int = 4
    fill: float | None = None

    def __post_init__(self) -> None:
        check_not_negative(padding=self.padding)

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns [B, C, size, size].

        Raises:
            ValueError: `size` is larger than the padded images, or below 1.
        """
        height, width = images.shape[-2:] if self.size is None else (self.size, self.size)
        if self.fill is None:
            padded = F.pad(images, [self.padding] * 4, mode="replicate")
        else:
            padded = F.pad(images, [self.padding] * 4, value=self.fill)
        spare = padded.shape[-2] - height, padded.shape[-1] - width
        if min(spare) < 0 or min(height, width) < 1:
            raise ValueError(f"cannot cut {height}x{width} out of padded images of {list(padded.shape[-2:])}")
        top, left = (torch.randint(n + 1, (len(images), 1), generator=generator, device=images.device) for n in spare)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        image = torch.arange(len(images), device=images.device)[:, None, None]
        # Indexing on both sides of the channels puts these last.
        return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
