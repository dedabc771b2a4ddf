"""What one training run was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from fusedopt.data.images import ImageData
from fusedopt.data.statistics import channel_statistics

_KINDS: dict[type | tuple[type, ...], tuple[str, ...]] = {
    str: ("dataset", "model", "optimizer", "fusedopt", "torch"),
    int: ("channels", "size", "epochs", "batch_size", "seed"),
    (str, type(None)): ("schedule", "amp"),
    (float, int, type(None)): ("held_out",),
    Mapping: ("model_options", "optimizer_options", "settings"),
    (str,): ("classes", "augmentations"),
    (float, int): ("mean", "std"),
}


@dataclass(frozen=True)
class RunConfig:
    """All that a run is made from, as plain values.

    Attributes:
        dataset: name of the data set, a key of `fusedopt.tasks.TASKS`, or the path of a folder with images.
        model, model_options: what `fusedopt.models.make_model` makes the network from.
        channels, size: of the images, which are square.
        classes: names of the labels.
        mean, std: of the training images, per channel, for pixel values from 0 to 1.
        optimizer, optimizer_options: what `fusedopt.training.make_optimizer` makes the optimizer from.
        epochs, batch_size, seed: as in `fusedopt.training.train`.
        augmentations: of the training images, in order.
        held_out: share of the training images that takes the place of the test images, None for the test images.
        schedule: name of the learning-rate schedule, None for a constant rate.
        amp: dtype of mixed precision, None without.
        settings: whatever else should be remembered; strings, numbers, booleans, None, lists and dictionaries.
        fusedopt, torch: versions.

    Raises:
        TypeError: a value is of another type.
        ValueError: there are not as many means or standard deviations as channels, or a value is out of its range.
    """

    dataset: str
    model: str
    channels: int
    size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    optimizer: str
    epochs: int
    batch_size: int
    seed: int
    model_options: Mapping[str, Any] = field(default_factory=dict)
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    augmentations: tuple[str, ...] = ()
    held_out: float | None = None
    schedule: str | None = None
    amp: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    fusedopt: str = field(default_factory=lambda: version("fusedopt"))
    torch: str = torch.__version__

    def __post_init__(self) -> None:
        for name in ("classes", "mean", "std", "augmentations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        self._check_types()
        if not len(self.mean) == len(self.std) == self.channels:
            counts = f"{len(self.mean)} means and {len(self.std)} standard deviations for {self.channels} channels"
            raise ValueError(f"one of each is needed per channel, not {counts}")
        self._check_ranges()

    def _check_types(self) -> None:
        for name, kind in ((name, kind) for kind, names in _KINDS.items() for name in names):
            value = getattr(self, name)
            items = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(item, kind) and not isinstance(item, bool) for item in items):
                raise TypeError(f"{name} cannot be {value!r}")

    def _check_ranges(self) -> None:
        for name, least in {"channels": 1, "size": 1, "epochs": 0, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("mean", "std"):
            if not all(math.isfinite(value) for value in getattr(self, name)):
                raise ValueError(f"{name} must be finite, not {getattr(self, name)}")
        if min(self.std) < 0:
            raise ValueError(f"std must be at least 0, not {self.std}")
        if not self.classes:
            raise ValueError("there must be a class")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, not {self.held_out}")

    @classmethod
    def of(cls, data: ImageData, **fields: Any) -> RunConfig:
        """Makes a configuration with the channels, size, classes, mean and std of the data that are trained on."""
        mean, std = (tuple(values.tolist()) for values in channel_statistics(data.train_images))
        _, channels, size, _ = data.train_images.shape
        return cls(channels=channels, size=size, classes=data.classes, mean=mean, std=std, **fields)
