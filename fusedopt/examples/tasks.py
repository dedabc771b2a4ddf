"""The training tasks by name: a data set, and the network that learns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fusedopt.data import ImageData, load_fashion_mnist, make_hands
from fusedopt.models import GarmentClassifier, HandClassifier

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """A data set and the network that learns it.

    Attributes:
        load: takes the folder of the user's data sets (None for the default places) and a function that is told about
            downloads; raises DataError.
        model: makes the network, with fresh weights.
    """

    load: Callable[[Path | None, Notify], ImageData]
    model: Callable[[], nn.Module]


TASKS = {
    "fashion-mnist": Task(lambda data_dir, notify: load_fashion_mnist(data_dir, notify=notify), GarmentClassifier),
    "hands": Task(lambda data_dir, notify: make_hands(), HandClassifier),  # drawn, so there is nothing to find
}


def find_task(name: str) -> Task:
    """Returns the task of that name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in TASKS:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]
