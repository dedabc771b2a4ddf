"""The implementations of one optimizer, and how to make each over given parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fusedopt.benchmark.implementations import (
    CASES,
    LR,
    NATIVE,
    OURS,
    Factory,
    OptimizerCase,
    clipping,
    plain,
)
from fusedopt.benchmark.rivals import rivals
from fusedopt.benchmark.subjects import Subject
from fusedopt.optim import FusedStep
from fusedopt.replacement import REPLACEMENTS, torchs_own
from fusedopt.sharding import is_dtensor


@dataclass(frozen=True)
class Candidates:
    """An optimizer, and its implementations by name.

    Attributes:
        name: for people.
        factories: ours first, then torch's, then other packages'.
        still: gradients are zeros, as an implementation adds to them and they are used again.
    """

    name: str
    factories: Mapping[str, Factory]
    still: bool = False

    def only(self, names: Sequence[str] | None) -> Candidates:
        """With these implementations alone."""
        if names is None:
            return self
        return replace(self, factories={name: make for name, make in self.factories.items() if name in names})


def named(name: str) -> Candidates:
    """An optimizer by the name of its case, such as ``AdamW`` or ``SGD-Nesterov``.

    Raises:
        ValueError: there is none of this name.
    """
    by_name = {key.lower(): case for key, case in CASES.items()}
    if name.lower() not in by_name:
        raise ValueError(f"unknown optimizer {name!r}; choose among {', '.join(CASES)}")
    case: OptimizerCase = by_name[name.lower()]
    return Candidates(case.name, {**case.factories(), **rivals(case.name)})


def of_optimizer(optimizer: Optimizer) -> tuple[Subject, Candidates]:
    """Its parameters, and how to make it again, in each implementation, with the options of its groups.

    Raises:
        TypeError: its class is neither torch's nor ours.
        ValueError: it has no parameters to step, or they are sharded.
    """
    cls = type(optimizer)
    public = cls is getattr(torch.optim, cls.__name__, None)
    if not public and not (issubclass(cls, FusedStep) and cls.__module__.startswith("fusedopt.")):
        raise TypeError(
            f"compare() takes optimizers of torch.optim and of fusedopt: it does not know how to make another "
            f"{cls.__module__}.{cls.__qualname__}"
        )
    theirs = next((key for key, ours in REPLACEMENTS.items() if cls in (key, ours)), cls if public else None)
    ours = REPLACEMENTS.get(theirs, None if public else cls) if theirs is not None else cls
    kept = _stepped(optimizer)
    make = functools.partial(_again, optimizer, [len(params) for params in kept])
    factories: dict[str, Factory] = {}
    if ours is not None:
        factories[OURS] = functools.partial(make, ours)
    if theirs is None and ours is not None:
        factories["for-loop"] = functools.partial(make, plain(ours))
    elif theirs is not None:
        taken = inspect.signature(theirs).parameters
        flags = {name: {"foreach": name == "foreach", "fused": name == "fused"} for name in NATIVE}
        for name, chosen in flags.items():
            if name == "for-loop" or name in taken:
                known = {flag: value for flag, value in chosen.items() if flag in taken}
                factories[name] = functools.partial(make, theirs, flags=known)
    still = any(group.get("nesterov") and not group["weight_decay"] for group in optimizer.param_groups)
    subject = Subject(f"{cls.__name__} at hand", tuple(p for params in kept for p in params))
    return subject, Candidates(cls.__name__, factories, still)


def _stepped(optimizer: Optimizer) -> list[list[Tensor]]:
    """The parameters of each group that a step would update: those with gradients, or, where none has any, all."""
    groups: list[list[Tensor]] = [group["params"] for group in optimizer.param_groups]
    if any(p.grad is not None for params in groups for p in params):
        groups = [[p for p in params if p.grad is not None] for params in groups]
    kept = [[p for p in params if p.requires_grad] for params in groups]
    if not any(kept):
        raise ValueError("the optimizer has no parameter that requires a gradient")
    if any(is_dtensor(p) for params in kept for p in params):
        raise ValueError(
            "compare() is for the parameters of one process, and these are sharded; compare(model) before sharding"
        )
    return kept


def _again(
    optimizer: Optimizer,
    counts: Sequence[int],
    cls: type[Optimizer],
    parameters: Sequence[Parameter],
    *,
    flags: Mapping[str, bool] | None = None,
) -> Optimizer:
    """Such an optimizer over other parameters, at a learning rate that leaves them near where they are."""
    groups, first = [], 0
    for group, count in zip(optimizer.param_groups, counts, strict=True):
        if count:
            options = {name: _own(value) for name, value in group.items() if name not in ("params", "param_names")}
            lr = torch.full_like(group["lr"], LR) if isinstance(group["lr"], Tensor) else LR
            groups.append({**options, **(flags or {}), "lr": lr, "params": list(parameters[first : first + count])})
        first += count
    limit = optimizer.defaults.get("max_grad_norm")
    construct: Callable[..., Optimizer] = functools.partial(torchs_own, cls, lr=LR)
    if issubclass(cls, FusedStep):
        return construct(groups, **({} if limit is None else {"max_grad_norm": limit}))
    return clipping(construct(groups), parameters, limit)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
