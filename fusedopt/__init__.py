"""Drop-in replacements for torch.optim whose step is one fused pass over memory."""

import platform
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from fusedopt import _C, averages, schedulers
from fusedopt.benchmark.comparing import compare
from fusedopt.gradients import (
    ExponentialGradientNoise,
    GradientNoise,
    History,
    capture,
    clip_grad_norm_,
    clip_grad_value_,
)
from fusedopt.lr_finder import LRFinder, LRFinderResult, find_lr
from fusedopt.optim import (
    LAMB,
    LARS,
    SGD,
    SWATS,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    DeltaBarDelta,
    Explanation,
    Lion,
    RAdam,
    RMSprop,
    Rprop,
    native,
)
from fusedopt.replacement import install, installed, uninstall

__version__ = version("fusedopt")
__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "SWATS",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "DeltaBarDelta",
    "Explanation",
    "ExponentialGradientNoise",
    "GradientNoise",
    "History",
    "LRFinder",
    "LRFinderResult",
    "Lion",
    "RAdam",
    "RMSprop",
    "Rprop",
    "averages",
    "capture",
    "clip_grad_norm_",
    "clip_grad_value_",
    "compare",
    "data",
    "find_lr",
    "info",
    "install",
    "installed",
    "models",
    "native",
    "schedulers",
    "training",
    "uninstall",
]


if TYPE_CHECKING:
    from fusedopt import data, models, training
else:

    def __getattr__(name: str) -> ModuleType:
        """Imports what belongs to the examples when it is asked for."""
        if name not in ("data", "models", "training"):
            raise AttributeError(f"module 'fusedopt' has no attribute {name!r}")
        return import_module(f"fusedopt.{name}")


def info() -> dict[str, str]:
    """What this installation is and runs on: versions, compiled back ends, instruction set in use, devices."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fusedopt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "back ends": "cpu" if _C.GPU is None else f"cpu, {_C.GPU}",
        "instruction set": _C.isa(),
        "threads": str(torch.get_num_threads()),
        "devices": ", ".join(["cpu", *gpus]),
    }
