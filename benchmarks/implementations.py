"""The optimizers that are timed, the implementations of each, and the memory that each rule has to move."""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lamb_foreach import LambForeach
from stream_loop import Pass
from torch.optim import Optimizer

OURS = "fusedopt"
NATIVE = ("for-loop", "foreach", "fused")
IMPLEMENTATIONS = (OURS, *NATIVE)

Factory = Callable[[Sequence[torch.nn.Parameter]], Optimizer]

LR = 1e-6  # Thousands of steps leave the parameters near where they were.


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer with its options."""

    name: str
    class_name: str
    options: Mapping[str, Any]
    passes: tuple[Pass, ...]
    ours: Mapping[str, Any] = field(default_factory=dict)
    """Options that torch's class does not have, and that at a constant learning rate do not change what is computed."""

    @property
    def accesses(self) -> int:
        """Reads and writes per element, the least that the rule can do with."""
        return sum(reads + writes for reads, writes in self.passes)

    def factories(self, capturable: bool = False) -> dict[str, Factory]:
        """How to make each implementation that exists, ours first; on request fit for a CUDA graph."""
        options = {"lr": LR, **self.options}
        graph = {"capturable": True} if capturable else {}
        ours = {**options, **self.ours, **graph}
        factories: dict[str, Factory] = {OURS: functools.partial(_fusedopt, self.class_name, ours)}
        native = getattr(torch.optim, self.class_name, None)
        if self.class_name in ("DeltaBarDelta", "SWATS"):
            factories["for-loop"] = functools.partial(_plain, self.class_name, options)
            return factories
        if native is None:
            factories["for-loop"] = functools.partial(LambForeach, bucket_elements=0, **options)
            factories["foreach"] = functools.partial(LambForeach, **options)
            return factories
        parameters = inspect.signature(native).parameters
        if "capturable" in parameters:
            options |= graph
        factories["for-loop"] = functools.partial(_native, native, {**options, "foreach": False})
        factories["foreach"] = functools.partial(_native, native, {**options, "foreach": True})
        if "fused" in parameters:
            factories["fused"] = functools.partial(_native, native, {**options, "fused": True})
        return factories


def _fusedopt(class_name: str, options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    import fusedopt  # Here, so that torch's own implementations can be timed where ours is not built.

    optimizer: Optimizer = getattr(fusedopt, class_name)(parameters, **options)
    return optimizer


def _native(
    native: Callable[..., Optimizer], options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]
) -> Optimizer:
    """torch's class; with ``max_grad_norm``, torch's own clipping comes before every step."""
    optimizer = native(parameters, **{name: value for name, value in options.items() if name != "max_grad_norm"})
    if "max_grad_norm" in options:

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(parameters, options["max_grad_norm"])

        optimizer.register_step_pre_hook(clip)
    return optimizer


def _plain(class_name: str, options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """What stands in for torch's for-loop: the plain PyTorch one that fusedopt falls back to."""
    import fusedopt

    class Plain(getattr(fusedopt, class_name)):
        def step(self, closure: Any = None) -> Any:
            with fusedopt.native():
                return super().step(closure)

    return Plain(parameters, **options)


# Weight decay is not 0 for Nesterov: without it torch's foreach path adds the momentum to the gradients in place, and
# gradients that are used again grow without bound.
CASES: dict[str, OptimizerCase] = {
    case.name: case
    for case in (
        OptimizerCase("AdamW", "AdamW", {"weight_decay": 0.01}, ((4, 3),)),
        # The limit is above the norm: gradients that are used again must not shrink.
        OptimizerCase("AdamW-clip", "AdamW", {"weight_decay": 0.01, "max_grad_norm": 1e4}, ((1, 0), (4, 3))),
        OptimizerCase("Adam", "Adam", {}, ((4, 3),)),
        OptimizerCase("SGD", "SGD", {}, ((2, 1),)),
        OptimizerCase("SGD-Nesterov", "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}, ((3, 2),)),
        OptimizerCase("SGD-classic", "SGD", {"momentum": 0.9}, ((3, 2),), ours={"momentum_form": "classic"}),
        OptimizerCase("DBD", "DeltaBarDelta", {}, ((4, 3),)),
        OptimizerCase("DBD-momentum", "DeltaBarDelta", {"momentum": 0.9}, ((5, 4),)),
        OptimizerCase("SWATS", "SWATS", {}, ((4, 3),)),  # its Adam phase; a group that has switched moves (3, 2)
        OptimizerCase("RMSprop", "RMSprop", {}, ((3, 2),)),
        OptimizerCase("Adagrad", "Adagrad", {}, ((3, 2),)),
        # The norm of the gradients; the moments and the norms of parameter and update; the step itself.
        OptimizerCase("LAMB", "LAMB", {"weight_decay": 0.01, "max_grad_norm": 1.0}, ((1, 0), (4, 2), (3, 1))),
    )
}
DEFAULT_CASES = ("AdamW", "SGD-Nesterov", "RMSprop", "LAMB")
GPU_CASES = (*DEFAULT_CASES, "AdamW-clip")

# Other packages that have an optimizer of this kind: package, module, and by case the class and its options.
_ADAMW = {"weight_decay": 0.01}
_NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
_LAMB = {"weight_decay": 0.01, "max_grad_norm": 1.0}
RIVALS: tuple[tuple[str, str, dict[str, tuple[str, dict[str, Any]]]], ...] = (
    (
        "apex",
        "apex.optimizers",
        {"AdamW": ("FusedAdam", _ADAMW), "SGD-Nesterov": ("FusedSGD", _NESTEROV), "LAMB": ("FusedLAMB", _LAMB)},
    ),
    ("deepspeed", "deepspeed.ops.adam", {"AdamW": ("FusedAdam", _ADAMW)}),
    ("deepspeed", "deepspeed.ops.lamb", {"LAMB": ("FusedLamb", _LAMB)}),
    (
        "transformer_engine",
        "transformer_engine.pytorch.optimizers",
        {"AdamW": ("FusedAdam", _ADAMW), "SGD-Nesterov": ("FusedSGD", _NESTEROV)},
    ),
    (
        "bitsandbytes",
        "bitsandbytes.optim",
        {"AdamW": ("AdamW", _ADAMW), "RMSprop": ("RMSprop", {}), "LAMB": ("LAMB", {"weight_decay": 0.01})},
    ),
)


def rivals(case: str) -> dict[str, Factory]:
    """How to make a case's optimizer with each other package that is installed and has it."""

    def make(module: str, name: str, options: dict[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
        optimizer: Optimizer = getattr(importlib.import_module(module), name)(parameters, lr=LR, **options)
        return optimizer

    return {
        package: functools.partial(make, module, *classes[case])
        for package, module, classes in RIVALS
        if case in classes and importlib.util.find_spec(package) is not None
    }
