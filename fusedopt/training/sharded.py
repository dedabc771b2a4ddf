"""FSDP2: a model that `torch.distributed.fsdp.fully_shard` has spread over the processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from fusedopt.sharding import is_dtensor, is_sharded, local, reshard
from fusedopt.training.settings import Settings


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
