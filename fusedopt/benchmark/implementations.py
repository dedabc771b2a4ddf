"""The optimizers that are timed, the implementations of each, and the memory that each rule has to move.

Nothing here needs fusedopt to be built before it makes one of its optimizers.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch.optim import Optimizer

from fusedopt.benchmark.lamb_foreach import LambForeach

OURS = "fusedopt"
NATIVE = ("for-loop", "foreach", "fused")
IMPLEMENTATIONS = (OURS, *NATIVE)

Pass = tuple[int, int]
"""How many arrays one pass over the elements reads, and how many of those it writes."""

Factory = Callable[[Sequence[torch.nn.Parameter]], Optimizer]

FORMATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masters": {"master_weights": True, "state_dtype": torch.float32},
    "stochastic": {"stochastic_rounding": True},
    "average": {"ema_decay": 0.999},
    "8bit": {"state_dtype": "8bit"},
    "8bit-stochastic": {"state_dtype": "8bit", "stochastic_rounding": True},
    "8bit-masters": {"state_dtype": "8bit", "master_weights": True},
}
"""Options of `fusedopt.optim.Formats` that are timed; for an average torch's classes get one of their own."""

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
    format: str = "plain"
    """Of `FORMATS`, what our parameters and states are stored in."""

    @property
    def accesses(self) -> int:
        """Reads and writes per element, the least that the rule can do with."""
        return sum(reads + writes for reads, writes in self.passes)

    def stored(self, name: str) -> "OptimizerCase":
        """The case in one of `FORMATS`."""
        return replace(self, ours={**self.ours, **FORMATS[name]}, format=name)

    def factories(self, capturable: bool = False) -> dict[str, Factory]:
        """How to make each implementation that exists, ours first; on request fit for a CUDA graph."""
        options = {"lr": LR, **self.options}
        graph = {"capturable": True} if capturable else {}
        ours = {**options, **self.ours, **graph}
        factories: dict[str, Factory] = {OURS: functools.partial(_fusedopt, self.class_name, ours)}
        native = getattr(torch.optim, self.class_name, None)
        if self.class_name == "LAMB":
            factories["for-loop"] = functools.partial(LambForeach, bucket_elements=0, **options)
            factories["foreach"] = functools.partial(LambForeach, **options)
            return factories
        if native is None:
            factories["for-loop"] = functools.partial(_plain, self.class_name, options)
            return factories
        parameters = inspect.signature(native).parameters
        if "capturable" in parameters:
            options |= graph
        factories["for-loop"] = functools.partial(_native, native, {**options, "foreach": False})
        factories["foreach"] = functools.partial(_native, native, {**options, "foreach": True})
        if "fused" in parameters:
            factories["fused"] = functools.partial(_native, native, {**options, "fused": True})
        if decay := self.ours.get("ema_decay"):
            for name in NATIVE:
                if name in factories:
                    factories[name] = functools.partial(_averaging, factories[name], decay)
        return factories


def _fusedopt(class_name: str, options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    from fusedopt import optim

    optimizer: Optimizer = getattr(optim, class_name)(parameters, **options)
    return optimizer


def _native(native: type[Optimizer], options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """torch's class; with ``max_grad_norm``, torch's own clipping comes before every step."""
    from fusedopt.replacement import torchs_own

    options = dict(options)
    limit = options.pop("max_grad_norm", None)
    return clipping(torchs_own(native, parameters, **options), parameters, limit)


def _averaging(factory: Factory, decay: float, parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """The optimizer, with an average of the weights after every step, in two operations of torch's."""
    optimizer = factory(parameters)
    means = [p.detach().float() for p in parameters]

    def average(*_: Any) -> None:
        torch._foreach_lerp_(means, [p.detach().float() for p in parameters], 1 - decay)

    optimizer.register_step_post_hook(average)
    return optimizer


def clipping(optimizer: Optimizer, parameters: Sequence[torch.nn.Parameter], limit: float | None) -> Optimizer:
    """The optimizer, with torch's own clipping before every step."""

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, cast(float, limit))

    if limit is not None:
        optimizer.register_step_pre_hook(clip)
    return optimizer


def _plain(class_name: str, options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """What stands in for torch's for-loop: the plain PyTorch one that fusedopt falls back to."""
    from fusedopt import optim

    return plain(getattr(optim, class_name))(parameters, **options)


def plain(cls: type[Optimizer]) -> type[Optimizer]:
    """A class of ours whose steps take torch's path."""
    from fusedopt import optim

    def step(self: Optimizer, closure: Any = None) -> Any:
        with optim.native():
            return cls.step(self, closure)

    return type(f"Plain{cls.__name__}", (cls,), {"step": step})


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
        OptimizerCase("Adamax", "Adamax", {}, ((4, 3),)),
        OptimizerCase("Adadelta", "Adadelta", {}, ((4, 3),)),
        OptimizerCase("NAdam", "NAdam", {}, ((4, 3),)),
        OptimizerCase("RAdam", "RAdam", {}, ((4, 3),)),
        OptimizerCase("ASGD", "ASGD", {}, ((3, 2),)),
        OptimizerCase("Lion", "Lion", {}, ((3, 2),)),
        OptimizerCase("Rprop", "Rprop", {}, ((4, 3),)),
        OptimizerCase("LARS", "LARS", {}, ((2, 0), (3, 2))),
        # The norm of the gradients; the moments and the norms of parameter and update; the step itself.
        OptimizerCase("LAMB", "LAMB", {"weight_decay": 0.01, "max_grad_norm": 1.0}, ((1, 0), (4, 2), (3, 1))),
    )
}
DEFAULT_CASES = ("AdamW", "SGD-Nesterov", "RMSprop", "LAMB")
GPU_CASES = (*DEFAULT_CASES, "AdamW-clip")


def in_torch(name: str) -> bool:
    """Whether torch.optim has the class of this name, or that of the case of this name."""
    return hasattr(torch.optim, CASES[name].class_name if name in CASES else name)
