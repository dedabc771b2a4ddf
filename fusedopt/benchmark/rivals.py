"""Other packages' optimizers of the same kinds, where they are installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from fusedopt.benchmark.implementations import LR, Factory

_ADAMW = {"weight_decay": 0.01}
_NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
_LAMB = {"weight_decay": 0.01, "max_grad_norm": 1.0}


@dataclass(frozen=True)
class Rival:
    """What a package has.

    Attributes:
        name: for people; with the bits of its states where they are not the parameters'.
        package: that has to be installed.
        module: of the classes.
        classes: by case, a class and its options.
    """

    name: str
    package: str
    module: str
    classes: Mapping[str, tuple[str, Mapping[str, Any]]]


RIVALS = (
    Rival(
        "apex",
        "apex",
        "apex.optimizers",
        {"AdamW": ("FusedAdam", _ADAMW), "SGD-Nesterov": ("FusedSGD", _NESTEROV), "LAMB": ("FusedLAMB", _LAMB)},
    ),
    Rival("deepspeed", "deepspeed", "deepspeed.ops.adam", {"AdamW": ("FusedAdam", _ADAMW)}),
    Rival("deepspeed", "deepspeed", "deepspeed.ops.lamb", {"LAMB": ("FusedLamb", _LAMB)}),
    Rival(
        "transformer_engine",
        "transformer_engine",
        "transformer_engine.pytorch.optimizers",
        {"AdamW": ("FusedAdam", _ADAMW), "SGD-Nesterov": ("FusedSGD", _NESTEROV)},
    ),
    Rival(
        "bitsandbytes",
        "bitsandbytes",
        "bitsandbytes.optim",
        {"AdamW": ("AdamW", _ADAMW), "RMSprop": ("RMSprop", {}), "LAMB": ("LAMB", {"weight_decay": 0.01})},
    ),
    Rival("bitsandbytes 8-bit", "bitsandbytes", "bitsandbytes.optim", {"AdamW": ("AdamW8bit", _ADAMW)}),
    Rival("torchao 8-bit", "torchao", "torchao.optim", {"AdamW": ("AdamW8bit", _ADAMW)}),
    Rival("optimi", "optimi", "optimi", {"AdamW": ("AdamW", _ADAMW), "Adam": ("Adam", {})}),
)


def rivals(case: str) -> dict[str, Factory]:
    """How to make a case's optimizer with each other package that is installed and has it."""
    return {
        rival.name: functools.partial(_make, rival.module, *rival.classes[case])
        for rival in RIVALS
        if case in rival.classes and importlib.util.find_spec(rival.package) is not None
    }


def _make(module: str, name: str, options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    optimizer: Optimizer = getattr(importlib.import_module(module), name)(parameters, lr=LR, **options)
    return optimizer
