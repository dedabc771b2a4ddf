"""DTensors: what this process holds of one, and sums over the processes that hold the rest.

`torch.distributed.tensor` is imported by whoever makes a DTensor. Nothing here does so, and a torch without
distributed will do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Groups: TypeAlias = "tuple[ProcessGroup, ...]"


def is_dtensor(value: object) -> bool:
    """Whether it is a DTensor, and not a subclass, which may mean something else."""
    return type(value) is getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def local(value: Any) -> Any:
    """What this process holds of a DTensor, of anything else all: an alias, without autograd's knowledge."""
    if not is_dtensor(value):
        return value
    shard = value._local_tensor
    return shard.wait() if hasattr(shard, "wait") else shard  # a collective that is still under way


def like(value: Any, here: Tensor) -> Any:
    """What this process holds of a tensor that is placed as `value`, as that tensor."""
    if not is_dtensor(value):
        return here
    return type(value).from_local(
        here, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was called on the model."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())  # imported by whoever called it
    return isinstance(model, kind)


def reshard(model: nn.Module) -> None:
    """Lets go of the whole parameters that a forward pass leaves behind where no backward pass follows."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()  # type: ignore[operator]


def groups_of(value: Any) -> Groups:
    """The process groups over which a tensor is split; none of one that every process has whole.

    Raises:
        RuntimeError: it is a partial sum.
    """
    if not is_dtensor(value):
        return ()
    mesh, placements = value.device_mesh, value.placements
    if mesh.get_coordinate() is None:
        return ()  # nothing of it is here
    if any(placement.is_partial() for placement in placements):
        raise RuntimeError(
            "the parameter is a partial sum, which has no norm; redistribute() it to Replicate() or Shard() first"
        )
    dims = [dim for dim, placement in enumerate(placements) if not placement.is_replicate() and mesh.size(dim) > 1]
    return tuple(mesh.get_group(dim) for dim in dims)


def describe(value: Any) -> str:
    """Which part of a DTensor is here, as "shard 2 of 4, Shard(0)"."""
    mesh, placements = value.device_mesh, value.placements
    names = [
        type(placement).__name__.lstrip("_") + (f"({placement.dim})" if hasattr(placement, "dim") else "")
        for placement in placements
    ]
    text = names[0] if len(names) == 1 else f"({', '.join(names)})"
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return f"no shard, {text}"
    dims = [dim for dim, placement in enumerate(placements) if hasattr(placement, "dim")]
    index = 0
    for dim in dims:
        index = index * mesh.size(dim) + coordinate[dim]
    return f"shard {index + 1} of {prod(mesh.size(dim) for dim in dims)}, {text}" if dims else text


def placed(value: Any, param: Any) -> Any:
    """The same tensor, placed as the parameter and there to be read. A collective, where it was placed otherwise."""
    if value.device_mesh != param.device_mesh or value.placements != param.placements:
        value = value.redistribute(param.device_mesh, param.placements)
    if not hasattr(value._local_tensor, "wait"):
        return value
    return type(value)(local(value), value._spec, requires_grad=False)


def local_part(whole: Tensor, like: Any) -> Tensor:
    """What this process holds of `whole`, were it placed as the DTensor `like`, a partial sum as a whole.

    A view where the placements allow.
    """
    mesh = like.device_mesh
    coordinate = mesh.get_coordinate()
    for dim, placement in enumerate(like.placements):
        if hasattr(placement, "dim"):
            parts, _ = placement._split_tensor(whole, mesh.size(dim), with_padding=False, contiguous=False)
            whole = parts[coordinate[dim]] if coordinate is not None else parts[0][:0]
    return whole


def all_reduce(parts: Iterable[tuple[Groups, Tensor]]) -> None:
    """Adds up each tensor over its process groups, in place: one collective for each group, dtype and device.

    Every process of a group has to come with tensors of the same sizes in the same order.
    """
    batches: dict[tuple[str, torch.dtype, torch.device], tuple[ProcessGroup, list[Tensor]]] = {}
    for groups, part in parts:
        for group in groups if part.numel() else ():
            key = (group.group_name, part.dtype, part.device)
            batches.setdefault(key, (group, []))[1].append(part)
    for group, tensors in batches.values():
        _all_reduce(group, tensors)


def _all_reduce(group: ProcessGroup, tensors: Sequence[Tensor]) -> None:
    device = tensors[0].device
    known = [torch.device(kind) for kind in group._device_types]
    # Parameters that are offloaded to the CPU may belong to a group that only knows GPUs.
    there = device if not known or device.type in [kind.type for kind in known] else known[0]
    if len(tensors) == 1 and there == device and tensors[0].is_contiguous():
        torch.distributed.all_reduce(tensors[0], group=group)
        return
    together = torch.cat([t.reshape(-1) for t in tensors]).to(there)
    torch.distributed.all_reduce(together, group=group)
    totals = torch.split(together.to(device), [t.numel() for t in tensors])
    for t, total in zip(tensors, totals, strict=True):
        t.copy_(total.view_as(t))
