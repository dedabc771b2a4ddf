"""The training tasks by name: a data set, and the network that learns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fusedopt.data import (
    ImageData,
    find_images,
    load_cifar10,
    load_fashion_mnist,
    load_rps,
    load_rps_photos,
    make_hands,
)
from fusedopt.models import make_model

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """A data set and the network that learns it.

    Attributes:
        load: takes the folder of the user's data sets (None for the default places) and a function that is told about
            downloads; raises DataError.
        model: name of the network that is trained unless another is named, see `fusedopt.models.make_model`.
        channels, classes, size: of the images.
    """

    load: Callable[[Path | None, Notify], ImageData]
    model: str
    channels: int = 3
    classes: int = 3
    size: int = 28

    def network(self, name: str | None = None) -> nn.Module:
        """Makes the network of that name for these images, by default `model`, with fresh weights.

        Raises:
            ValueError: there is none of that name; the message lists the names.
        """
        return make_model(name or self.model, channels=self.channels, classes=self.classes, size=self.size)


TASKS = {
    "fashion-mnist": Task(
        lambda data_dir, notify: load_fashion_mnist(data_dir, notify=notify), "lenet", channels=1, classes=10
    ),
    "hands": Task(lambda data_dir, notify: make_hands(), "lenet"),  # drawn, so there is nothing to find
    "rps": Task(lambda data_dir, notify: load_rps(data_dir, notify=notify), "cnn2"),
    "rps-photos": Task(lambda data_dir, notify: load_rps_photos(data_dir, size=40), "resnet9-small", size=40),
    "cifar10": Task(lambda data_dir, notify: load_cifar10(data_dir, notify=notify), "resnet9", classes=10, size=32),
}


def find_task(name: str) -> Task:
    """Returns the task of that name, or that of a folder with images, see `fusedopt.data.find_images`.

    Raises:
        ValueError: there is none; the message lists the names.
        fusedopt.data.DataError: the folder does not hold images in class folders.
    """
    if name in TASKS:
        return TASKS[name]
    if not Path(name).is_dir():
        choice = f"choose one of {', '.join(TASKS)}, or a folder that has a folder of images for each class"
        raise ValueError(f"unknown data set {name!r}; {choice}")
    found = find_images(name)
    shape = {"channels": found.channels, "classes": len(found.classes), "size": found.size}
    return Task(lambda data_dir, notify: found.load(notify), "resnet9-small", **shape)


def full_name(name: str) -> str:
    """Returns the name of a data set as it holds everywhere: of a folder its whole path."""
    return name if name in TASKS else str(Path(name).resolve())
