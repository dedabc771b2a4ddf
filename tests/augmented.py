"""Augmentations by name, and images for them."""

import pytest
import torch

from fusedopt.data.augmentations import AUGMENTATIONS

CLASSES = 4


IMAGE_ONLY = [name for name in AUGMENTATIONS if name not in ("mixup", "cutmix", "mosaic")]


MIXING = ["mixup", "cutmix", "mosaic"]


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]


def generator(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def batch(count=12, channels=3, height=16, width=16):
    images = torch.rand(count, channels, height, width, generator=generator(7))
    return images, torch.arange(count) % CLASSES
