"""States with DTensors: made whole to be saved, and placed again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from fusedopt.sharding import is_dtensor, local, local_part


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
