"""Groups whose parameters an engine (DeepSpeed) has replaced by one flat tensor, of which each process has a part."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from fusedopt.optim._base import Base
from fusedopt.optim._processes import HELP


def is_partition(params: Any, known: frozenset[int] | None) -> bool:
    """Whether a group has one flat tensor in the place of its parameters, as where DeepSpeed has taken over."""
    if known is None or not isinstance(params, (list, tuple)) or len(params) != 1:
        return False
    return params[0].dim() == 1 and id(params[0]) not in known


def refuse_partition(optimizer: Base, group: dict[str, Any]) -> None:
    """Raises where a norm of such a tensor would not be that of the parameters.

    Raises:
        ValueError: with what to do.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    name, found = type(optimizer).__name__, "a flat tensor has taken the place of this group's parameters (DeepSpeed?)"
    if optimizer._sums_tensors(group):
        raise ValueError(f"{found}; {name} takes norms of single tensors: choose another optimizer ({HELP})")
    clips = optimizer.defaults["max_grad_norm"] is not None
    if (clips or optimizer._sum_scope == "group") and optimizer._norm_group is None and dist.get_world_size() > 1:
        raise ValueError(
            f"{found}, and {'max_grad_norm' if clips else name} would take the norm of the part that is here; give "
            f"norm_group, the processes over which it is split, or leave clipping to the engine ({HELP})"
        )
