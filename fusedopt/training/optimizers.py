"""Optimizers by name: `adamw` is fusedopt's, `torch.adamw` is PyTorch's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from fusedopt import optim
from fusedopt.replacement import torchs_own


@dataclass(frozen=True)
class OptimizerEntry:
    """How an optimizer is called, and with what it trains the example networks well.

    Attributes:
        class_name: in `fusedopt.optim` and, where `in_torch`, in `torch.optim`.
        lr: the default learning rate of the examples.
        momentum: the default momentum of the examples, None where the optimizer takes none.
    """

    class_name: str
    lr: float
    momentum: float | None = None

    @property
    def in_torch(self) -> bool:
        """Whether `torch.optim` has it too."""
        return hasattr(torch.optim, self.class_name)

    def takes(self, option: str) -> bool:
        """Returns whether the class has a keyword argument of that name."""
        return option in inspect.signature(getattr(optim, self.class_name)).parameters

    @classmethod
    def untuned(cls, optimizer: type[optim.FusedStep]) -> OptimizerEntry:
        """The entry of a class whose own defaults are those of the examples; a TypeError where it has none for `lr`."""
        parameters = inspect.signature(optimizer).parameters
        if parameters["lr"].default is inspect.Parameter.empty:
            raise TypeError(f"{optimizer.__name__} has no default lr: enter it in OPTIMIZERS with one")
        momentum = parameters["momentum"].default if "momentum" in parameters else None
        return cls(optimizer.__name__, parameters["lr"].default, momentum)


def name_of(class_name: str) -> str:
    """Returns the name of a class in commands: `DeltaBarDelta` is `delta-bar-delta`, `RMSprop` is `rmsprop`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "-", class_name).lower()


OPTIMIZERS = {
    "sgd": OptimizerEntry("SGD", lr=0.02, momentum=0.9),
    "rmsprop": OptimizerEntry("RMSprop", lr=1e-3, momentum=0.0),
    "adagrad": OptimizerEntry("Adagrad", lr=2e-2),
    "adadelta": OptimizerEntry("Adadelta", lr=1.0),
    "adam": OptimizerEntry("Adam", lr=1e-3),
    "adamw": OptimizerEntry("AdamW", lr=1e-3),
    "adamax": OptimizerEntry("Adamax", lr=4e-3),
    "nadam": OptimizerEntry("NAdam", lr=2e-3),
    "radam": OptimizerEntry("RAdam", lr=4e-3),
    "asgd": OptimizerEntry("ASGD", lr=0.1),
    "rprop": OptimizerEntry("Rprop", lr=1e-3),
    "lion": OptimizerEntry("Lion", lr=1e-3),
    "lars": OptimizerEntry("LARS", lr=3.0, momentum=0.9),
    "lamb": OptimizerEntry("LAMB", lr=4e-3),
    "swats": OptimizerEntry("SWATS", lr=1e-3),
    "delta-bar-delta": OptimizerEntry("DeltaBarDelta", lr=0.02, momentum=0.9),
}
"""Every optimizer of `fusedopt.optim`, by the name that commands and `make_optimizer` take.

A class that is not in this list is entered with its own defaults.
"""
OPTIMIZERS |= {
    name_of(cls.__name__): OptimizerEntry.untuned(cls)
    for cls in (getattr(optim, name) for name in optim.__all__)
    if isinstance(cls, type) and issubclass(cls, optim.FusedStep) and name_of(cls.__name__) not in OPTIMIZERS
}


def optimizer_names() -> list[str]:
    """Returns the names which `make_optimizer` takes."""
    return [*OPTIMIZERS, *(f"torch.{name}" for name, entry in OPTIMIZERS.items() if entry.in_torch)]


def make_optimizer(
    name: str,
    params: Iterable[Parameter],
    *,
    lr: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Builds an optimizer by name.

    Args:
        name: one of `optimizer_names()`.
        params: the parameters to update.
        lr, momentum: None takes the default of the examples, see `OPTIMIZERS`.
        weight_decay: None takes the optimizer's own default.
        options: further keyword arguments, such as `nesterov=True`.

    Raises:
        ValueError: the name is unknown, or `momentum` or `weight_decay` is given to an optimizer that takes none.
    """
    if name not in optimizer_names():
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(optimizer_names())}")
    prefix, _, short = name.rpartition(".")
    entry = OPTIMIZERS[short]
    for option, value in (("momentum", momentum), ("weight_decay", weight_decay)):
        if value is not None and not entry.takes(option):
            raise ValueError(f"{name} takes no {option.replace('_', ' ')}; leave it out, or choose another optimizer")
    arguments: dict[str, Any] = {
        "lr": entry.lr if lr is None else lr,
        "momentum": entry.momentum if momentum is None else momentum,
        "weight_decay": weight_decay,
    }
    given = {key: value for key, value in arguments.items() if value is not None}
    cls: type[torch.optim.Optimizer] = getattr(torch.optim if prefix else optim, entry.class_name)
    arguments = given | options
    return torchs_own(cls, params, **arguments) if prefix else cls(params, **arguments)
