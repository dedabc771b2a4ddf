"""The optimizers that are timed, the implementations of each, and the memory that each rule has to move."""

import functools
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

    def factories(self) -> dict[str, Factory]:
        """How to make each implementation that exists, ours first."""
        options = {"lr": LR, **self.options}
        factories: dict[str, Factory] = {OURS: functools.partial(_fusedopt, self.class_name, {**options, **self.ours})}
        native = getattr(torch.optim, self.class_name, None)
        if self.class_name == "DeltaBarDelta":
            factories["for-loop"] = functools.partial(_plain_delta_bar_delta, options)
            return factories
        if native is None:
            factories["for-loop"] = functools.partial(LambForeach, bucket_elements=0, **options)
            factories["foreach"] = functools.partial(LambForeach, **options)
            return factories
        factories["for-loop"] = functools.partial(native, foreach=False, **options)
        factories["foreach"] = functools.partial(native, foreach=True, **options)
        if "fused" in inspect.signature(native).parameters:
            factories["fused"] = functools.partial(native, fused=True, **options)
        return factories


def _fusedopt(class_name: str, options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    import fusedopt  # Here, so that torch's own implementations can be timed where ours is not built.

    optimizer: Optimizer = getattr(fusedopt, class_name)(parameters, **options)
    return optimizer


def _plain_delta_bar_delta(options: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """What stands in for torch's for-loop: the plain PyTorch one that fusedopt falls back to."""
    import fusedopt

    class Plain(fusedopt.DeltaBarDelta):
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
        OptimizerCase("Adam", "Adam", {}, ((4, 3),)),
        OptimizerCase("SGD", "SGD", {}, ((2, 1),)),
        OptimizerCase("SGD-Nesterov", "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}, ((3, 2),)),
        OptimizerCase("SGD-classic", "SGD", {"momentum": 0.9}, ((3, 2),), ours={"momentum_form": "classic"}),
        OptimizerCase("DBD", "DeltaBarDelta", {}, ((4, 3),)),
        OptimizerCase("DBD-momentum", "DeltaBarDelta", {"momentum": 0.9}, ((5, 4),)),
        OptimizerCase("RMSprop", "RMSprop", {}, ((3, 2),)),
        OptimizerCase("Adagrad", "Adagrad", {}, ((3, 2),)),
        # The norm of the gradients; the moments and the norms of parameter and update; the step itself.
        OptimizerCase("LAMB", "LAMB", {"weight_decay": 0.01, "max_grad_norm": 1.0}, ((1, 0), (4, 2), (3, 1))),
    )
}
DEFAULT_CASES = ("AdamW", "SGD-Nesterov", "RMSprop", "LAMB")
