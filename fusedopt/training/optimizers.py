"""Optimizers by name: `adamw` is fusedopt's, `torch.adamw` is PyTorch's."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Parameter

from fusedopt.replacement import torchs_own


@dataclass(frozen=True)
class OptimizerEntry:
    """How an optimizer is called, and with what it trains the example networks well.

    Attributes:
        class_name: in `fusedopt` and, where `in_torch`, in `torch.optim`.
        lr: the default learning rate of the examples.
        momentum: the default momentum of the examples, None where the optimizer takes none.
        in_torch: whether `torch.optim` has it too.
        options: further keyword arguments.
    """

    class_name: str
    lr: float
    momentum: float | None = None
    in_torch: bool = True
    options: dict[str, Any] = field(default_factory=dict)


OPTIMIZERS = {
    "sgd": OptimizerEntry("SGD", lr=0.02, momentum=0.9),
    "rmsprop": OptimizerEntry("RMSprop", lr=1e-3, momentum=0.0),
    "adagrad": OptimizerEntry("Adagrad", lr=2e-2),
    "adam": OptimizerEntry("Adam", lr=1e-3),
    "adamw": OptimizerEntry("AdamW", lr=1e-3),
    "swats": OptimizerEntry("SWATS", lr=1e-3, in_torch=False),
    "delta-bar-delta": OptimizerEntry("DeltaBarDelta", lr=0.02, momentum=0.9, in_torch=False),
    "lamb": OptimizerEntry("LAMB", lr=4e-3, in_torch=False),
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
        ValueError: the name is unknown, or `momentum` is given to an optimizer that has none.
    """
    if name not in optimizer_names():
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(optimizer_names())}")
    prefix, _, short = name.rpartition(".")
    entry = OPTIMIZERS[short]
    if momentum is not None and entry.momentum is None:
        takers = [other for other, candidate in OPTIMIZERS.items() if candidate.momentum is not None]
        raise ValueError(f"{name} takes no momentum, only {', '.join(takers[:-1])} and {takers[-1]} do")
    arguments: dict[str, Any] = {
        "lr": entry.lr if lr is None else lr,
        "momentum": entry.momentum if momentum is None else momentum,
        "weight_decay": weight_decay,
    }
    given = {key: value for key, value in arguments.items() if value is not None}
    cls: type[torch.optim.Optimizer] = getattr(
        torch.optim if prefix else importlib.import_module("fusedopt"), entry.class_name
    )
    arguments = given | entry.options | options
    return torchs_own(cls, params, **arguments) if prefix else cls(params, **arguments)
