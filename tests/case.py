"""What a case is: one optimizer with one set of options. The tables of cases are in rules/, all of them in cases.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of options."""

    name: str
    cls: type[Optimizer]
    reference: type[Optimizer]
    """What it is held against, in float64: torch's class, or a reference.Plain that imports nothing of fusedopt."""
    kwargs: dict[str, Any]
    """What both `cls` and `reference` are made with."""
    states: tuple[str, ...]
    """Keys of the tensors of a parameter's size that the state of a parameter holds."""
    max_grad_norm: float | None = None
    """Our own option; for a twin, the gradients are to be clipped before its step."""
    idle: tuple[str, ...] = ()
    """Those of `states` that stay as they are for the few steps of a test."""
    scalars: tuple[str, ...] = ()
    """Keys of what the state holds beside `states` and the step count: one number each."""
    decays: tuple[float, float] | None = (0.1, 0.3)
    """Weight decay of its twins `-decay` and `-fast`; None where the class has none."""
    fast_lr: float = 0.3
    """Learning rate of its twin `-fast`."""
    by_sign: bool = False
    """Whether it steps by signs, so that neither the size of a gradient nor an infinite one reaches a parameter."""
    fractions: tuple[str, ...] = ("betas",)
    """Hyper-parameters that the fused step takes from 0 to below 1 only (Domain::kFraction)."""
    eight_bits: float = 0.1
    """How far five steps with states of 8 bits may end from those with float32, as a part of the way that they go."""

    @property
    def twin(self) -> type[Optimizer] | None:
        """The class of torch.optim that does the same; None where there is none."""
        return self.reference if self.reference.__module__.startswith("torch.") else None

    @property
    def decoupled(self) -> bool:
        """Whether weight decay is no part of the gradient."""
        return self.reference is torch.optim.AdamW or getattr(self.reference, "decoupled", False)

    def make(self, params: Any, **kwargs: Any) -> Optimizer:
        return self.cls(params, **(self.kwargs | {"max_grad_norm": self.max_grad_norm} | kwargs))

    def __str__(self) -> str:
        return self.name
