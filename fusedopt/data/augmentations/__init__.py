"""Augmentations by name, for batches of images on any device.

They are written in PyTorch operations on whole batches, with a generator that is given: torchvision's transforms draw
one set of numbers for a batch, from the global generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from fusedopt.data.augmentations.base import Augmentation, Compose, ImageAugmentation
from fusedopt.data.augmentations.color import ColorJitter, GaussianBlur, GaussianNoise, Grayscale
from fusedopt.data.augmentations.geometry import Crop, Flip, Pad, Resize, Rotate
from fusedopt.data.augmentations.mixing import CutMix, Mixup, Mosaic
from fusedopt.data.augmentations.occlusion import CutOut, RandomErasing

__all__ = ["AUGMENTATIONS", "Augmentation", "Compose", "ImageAugmentation", "compose", "make_augmentation"]

AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "pad": Pad,
    "resize": Resize,
    "rotate": Rotate,
    "flip": Flip,
    "crop": Crop,
    "grayscale": Grayscale,
    "color-jitter": ColorJitter,
    "noise": GaussianNoise,
    "blur": GaussianBlur,
    "random-erasing": RandomErasing,
    "cutout": CutOut,
    "mixup": Mixup,
    "cutmix": CutMix,
    "mosaic": Mosaic,
}


def make_augmentation(name: str, classes: int, **options: Any) -> Augmentation:
    """Makes an augmentation.

    Args:
        name: a key of `AUGMENTATIONS`.
        classes: number of classes, which those need that mix labels.
        options: arguments of its class, which has defaults for all of them.

    Raises:
        ValueError: there is none of that name (the message lists the names), or an option's value is out of range.
        TypeError: it has no option of that name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r}; choose from {', '.join(AUGMENTATIONS)}")
    kind = AUGMENTATIONS[name]
    if "classes" in inspect.signature(kind).parameters:
        options["classes"] = classes
    return kind(**options)


def compose(names: Iterable[str], classes: int) -> Compose:
    """Makes a composition of augmentations with their defaults, e.g. `compose(["crop", "flip", "cutout"], 10)`.

    Raises:
        ValueError: there is none of a name.
    """
    return Compose([make_augmentation(name, classes) for name in names])
