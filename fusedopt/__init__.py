"""Drop-in replacements for torch.optim whose step is one fused pass over memory."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fusedopt import averages, schedulers
from fusedopt.benchmark.comparing import compare
from fusedopt.gradients import (
    ExponentialGradientNoise,
    GradientNoise,
    History,
    capture,
    clip_grad_norm_,
    clip_grad_value_,
)
from fusedopt.installation import VERSION, info
from fusedopt.lr_finder import LRFinder, LRFinderResult, find_lr
from fusedopt.optim import (
    ASGD,
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
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    native,
)
from fusedopt.optim._in_backward import step_in_backward
from fusedopt.optim._portable import portable_state_dict
from fusedopt.replacement import install, installed, uninstall

__version__ = VERSION
__all__ = [
    "ASGD",
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
    "NAdam",
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
    "portable_state_dict",
    "schedulers",
    "step_in_backward",
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

    def __dir__() -> list[str]:
        """The public names, those that are imported when they are asked for included."""
        return sorted([*__all__, "__version__", "optim"])
