"""The networks which the examples train, by name and by class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fusedopt.models.blocks import DropBlock
from fusedopt.models.cnn2 import CNN2
from fusedopt.models.lenet import GarmentClassifier, HandClassifier, LeNet
from fusedopt.models.mlp import MLP, MLP3, LectureMLP
from fusedopt.models.resnet import ResNet9, ResNet18

__all__ = [
    "CNN2",
    "MLP",
    "MLP3",
    "MODELS",
    "DropBlock",
    "GarmentClassifier",
    "HandClassifier",
    "LeNet",
    "LectureMLP",
    "ResNet9",
    "ResNet18",
    "make_model",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "lenet-bn": LeNet,
    "lecture-mlp": LectureMLP,
    "mlp3": MLP3,
    "cnn2": CNN2,
    "resnet9": ResNet9,
    "resnet9-small": ResNet9,
    "resnet18": ResNet18,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "lenet-bn": {"normalization": "batch"},
    "cnn2": {"n_feature": 5, "p": 0.3},
    "resnet9-small": {"width": 12},
}


def make_model(name: str, *, channels: int, classes: int, size: int, **options: Any) -> nn.Module:
    """Makes a network for images [N, channels, size, size].

    Args:
        name: a key of `MODELS`.
        channels, size: of the images.
        classes: how many scores there are.
        options: further arguments of its class.

    Raises:
        ValueError: there is none of that name (the message lists the names), or an option's value is unknown.
        TypeError: it has no option of that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    given = {"channels": channels, "size": size, "inputs": channels * size * size, "classes": classes}
    taken = inspect.signature(MODELS[name]).parameters
    shape = {key: value for key, value in given.items() if key in taken}
    return MODELS[name](**shape, **{**_DEFAULTS.get(name, {}), **options})
