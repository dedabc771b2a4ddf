"""DTensor parameters in a step: which sums go over which processes; gradients and states placed as the parameter."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fusedopt import sharding
from fusedopt.sharding import Groups, is_dtensor


class Domains:
    """The parameters of an optimizer by the processes over which they are split, and by device.

    The same on every process, whatever part of a parameter it holds and whether it has a gradient: what is reduced, and
    in which order, follows from this alone. Plain and replicated parameters are in domains without groups, whose sums
    are whole as they are.
    """

    def __init__(self, param_groups: list[dict[str, Any]], sum_scope: Literal["tensor", "group"] | None) -> None:
        self.of: list[int] = []
        """The domain of each parameter."""
        self.groups: list[Groups] = []
        self.devices: list[torch.device] = []
        known: dict[tuple[torch.device, tuple[str, ...]], int] = {}
        for p in (p for group in param_groups for p in group["params"]):
            groups, device = sharding.groups_of(p), sharding.local(p).device
            domain = known.setdefault((device, tuple(group.group_name for group in groups)), len(known))
            if domain == len(self.groups):
                self.groups.append(groups)
                self.devices.append(device)
            self.of.append(domain)
        self.sizes = [0] * len(self.groups)
        """How many pairs of sums a rule takes in each domain, between its two passes."""
        self.slots = self._slots(param_groups, sum_scope)
        """Where among those of its domain a parameter's sums stand, -1 where what becomes of it depends on none."""

    def _slots(self, param_groups: list[dict[str, Any]], sum_scope: str | None) -> list[int]:
        slots, first = [], 0
        for group in param_groups:
            mine = self.of[first : (first := first + len(group["params"]))]
            shared: dict[int, int] = {}
            for domain in mine:
                if sum_scope == "tensor" and self.groups[domain]:
                    slot = self._new_slot(domain)
                elif sum_scope == "group" and any(self.groups[other] for other in mine):
                    slot = shared[domain] if domain in shared else self._new_slot(domain)
                    shared[domain] = slot
                else:
                    slot = -1
                slots.append(slot)
        return slots

    def _new_slot(self, domain: int) -> int:
        self.sizes[domain] += 1
        return self.sizes[domain] - 1

    def zeros(self, sizes: Sequence[int] | None = None) -> list[Tensor]:
        """float64 numbers for each domain, one or as many as `sizes` says, where its parameters are."""
        return [
            torch.zeros(size, dtype=torch.float64, device=device)
            for size, device in zip(sizes or [1] * len(self.devices), self.devices, strict=True)
        ]

    def all_reduce(self, parts: Iterable[Tensor]) -> None:
        """Adds up what each domain has, over its processes, in place."""
        sharding.all_reduce(zip(self.groups, parts, strict=True))


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters, in the order of the groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def has_shards(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a parameter is a DTensor."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    return any(map(is_dtensor, params_of(optimizer)))


@contextlib.contextmanager
def placed(optimizer: torch.optim.Optimizer, indices: Iterable[int]) -> Iterator[None]:
    """Places gradients and states of the DTensors at `indices` as their parameters: gradients while the block runs.

    A partial sum has to be summed before it can be used, and nothing of it may be lost should there be a refusal.
    """
    params = params_of(optimizer)
    with contextlib.ExitStack() as undo:
        for i in indices:
            p = params[i]
            state = optimizer.state.get(p, {})
            for name, value in state.items():
                if is_dtensor(value):
                    state[name] = sharding.placed(value, p)
            if is_dtensor(p.grad):
                assert p.grad is not None
                grad = sharding.placed(p.grad, p)
                if grad is not p.grad:
                    undo.callback(setattr, p, "grad", p.grad)
                    p.grad = grad
        yield
