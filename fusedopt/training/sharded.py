"""FSDP2: a model that `torch.distributed.fsdp.fully_shard` has spread over the processes, and its states made whole."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.sharding import is_dtensor, local, local_part
from fusedopt.training.settings import Settings


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was called on the model."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())  # imported by whoever called it
    return isinstance(model, kind)


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Spreads a model over all processes, in place, and returns it: as one, since the package's networks are small.

    Its parameters are DTensors afterwards, from which the optimizer has to be made.

    Args:
        model: with contiguous parameters, on `device`.
        device: as that of `process_group`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))
    return model


def reshard(model: nn.Module) -> None:
    """Lets go of the whole parameters that a forward pass leaves behind where no backward pass follows."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()  # type: ignore[operator]


def check_settings(settings: Settings) -> None:
    """Refuses settings that do not go with a sharded model.

    Raises:
        ValueError: with the reason, and what to do.
    """
    reasons = {
        "channels_last": "lays out weights in a way that fully_shard does not take",
        "cuda_graph": "trains in one process",
    }
    for name, reason in reasons.items():
        if getattr(settings, name):
            raise ValueError(f"{name} {reason}: leave it out, or let every process have the whole model")


def check_sharded(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuses what would not be trained as one process does.

    Raises:
        ValueError: with the reason, and what to do.
    """
    if not is_sharded(model):
        if any(is_sharded(module) for module in model.modules()):
            raise ValueError("fully_shard was called on parts of the model only; call it on the model too, as the last")
        return
    reshard(model)
    for name, param in model.named_parameters():
        if not is_dtensor(param):
            raise ValueError(f"fully_shard ignores {name}, whose gradient would differ by process; shard it too")
        mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
        data = all(placement.is_replicate() for placement in placements[:-1]) and placements[-1].is_shard()
        if mesh.size() != dist.get_world_size() or not data:
            raise ValueError(f"{name} is not sharded over all processes alone; leave out other parallelism here")
        if local(param).device.type != mesh.device_type:
            raise ValueError(f"{name} is offloaded to the CPU, where this loop looks for the images; leave it out")
    if not all(is_dtensor(param) for group in optimizer.param_groups for param in group["params"]):
        raise ValueError(
            "the optimizer has parameters from before fully_shard; make it from those of the sharded model"
        )


def has_shards(state: Any) -> bool:
    """Whether there is a DTensor in dictionaries, lists and tuples."""
    if isinstance(state, dict):
        return any(has_shards(value) for value in state.values())
    return any(map(has_shards, state)) if isinstance(state, list | tuple) else is_dtensor(state)


def whole(state: Any) -> Any:
    """Returns a state with whole tensors on the CPU in place of DTensors. A collective, where there are any.

    Rank 0 gets them; the others get empty tensors in their place.
    """
    return _mapped(state, _whole)


def local_parts(state: Any) -> Any:
    """Returns a state with what this process holds in place of DTensors."""
    return _mapped(state, local)


def place(state: Tensor, like: Any) -> Tensor:
    """Returns a whole tensor as a DTensor that is placed as `like`, of the same shape; a tensor that is no DTensor.

    Raises:
        ValueError: the shapes differ.
    """
    from torch.distributed.tensor import DTensor

    if state.shape != like.shape:
        raise ValueError(f"a tensor of shape {tuple(state.shape)} cannot be placed as one of {tuple(like.shape)}")
    part = local_part(state, like).to(local(like).device, copy=True).contiguous()
    options = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(part, like.device_mesh, like.placements, **options)


def place_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Puts DTensors in place of whole tensors in an optimizer's state, those of its parameters that are DTensors."""
    for saved, live in zip(state["param_groups"], optimizer.param_groups, strict=False):
        for index, param in zip(saved["params"], live["params"], strict=False):
            values = state["state"].get(index, {}) if is_dtensor(param) else {}
            for key, value in values.items():
                if isinstance(value, Tensor) and value.dim() and not is_dtensor(value):
                    values[key] = place(value, param)


def _whole(value: Any) -> Any:
    if not is_dtensor(value):
        return value
    full = value.detach().full_tensor()
    return full.cpu() if dist.get_rank() == 0 else torch.empty(0, dtype=full.dtype)


def _mapped(state: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(state, dict):
        new = copy.copy(state)  # of the same class, with what hangs on it, such as the version of a model's state
        for key in sorted(state, key=str):  # every process in the same order
            new[key] = _mapped(state[key], function)
        return new
    if type(state) in (list, tuple):
        return type(state)(_mapped(value, function) for value in state)
    return function(state)
