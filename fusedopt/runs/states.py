"""The states of what a run is made of: how each is read, in which order they are put back, and random numbers."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedopt.runs.shards import place, place_optimizer
from fusedopt.schedulers.batch_size import BatchSizeScheduler
from fusedopt.schedulers.device import DeviceSchedule
from fusedopt.schedulers.named import Schedule
from fusedopt.sharding import is_dtensor

_SCHEDULES = (LRScheduler, DeviceSchedule, BatchSizeScheduler, Schedule)


class Stateful(Protocol):
    """What a checkpoint can hold: a model, an optimizer, a scheduler, a GradScaler, a sampler, gradient noise, ..."""

    def state_dict(self) -> Any:
        """Returns tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Takes over what `state_dict` returned."""


def in_order(objects: Mapping[str, Stateful | torch.Generator]) -> list[str]:
    """Returns the names in the order in which states are put back, whatever the order in which they were given.

    What sets something of another comes after it: a sampler seeds the generator that is its own, a schedule on the
    device puts its tensors where loading an optimizer has put others, a batch-size schedule asks for the momentum.
    Models are last: theirs is the one state that is checked beforehand, and not copied to be put back.
    """

    def rank(name: str) -> tuple[bool, ...]:
        value = objects[name]
        kinds = (torch.Generator, Optimizer)
        return (isinstance(value, nn.Module), isinstance(value, _SCHEDULES), *(not isinstance(value, k) for k in kinds))

    return sorted(objects, key=rank)


def state_of(value: Stateful | torch.Generator) -> dict[str, Any]:
    """Returns the state of an object, and the name of its class."""
    state = value.get_state() if isinstance(value, torch.Generator) else value.state_dict()
    return {"class": type(value).__name__, "state": state}


def restore(value: Stateful | torch.Generator, state: Any) -> None:
    """Gives an object a state, whole or in DTensors; one of an optimizer may be changed by it."""
    if isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, Optimizer):
        # load_state_dict moves states to their parameters' devices, but leaves a learning rate that is a tensor alone.
        for saved, live in zip(state["param_groups"], value.param_groups, strict=False):
            for key, option in saved.items():
                if isinstance(option, Tensor) and isinstance(live.get(key), Tensor):
                    saved[key] = option.to(live[key].device)
        place_optimizer(value, state)
        value.load_state_dict(state)
    elif isinstance(value, nn.Module):
        shards = {key: live for key, live in value.state_dict().items() if is_dtensor(live)}
        state = copy.copy(state)
        state.update((key, place(state[key], live)) for key, live in shards.items() if not is_dtensor(state[key]))
        value.load_state_dict(state)
    else:
        value.load_state_dict(state)


def mismatch(model: nn.Module, saved: Mapping[str, Any]) -> str | None:
    """What tells the model from the one that was saved, None if nothing does."""
    live = model.state_dict()
    if missing := live.keys() - saved.keys():
        return f"{sorted(missing)[0]} is missing in the file"
    if extra := saved.keys() - live.keys():
        return f"the model has no {sorted(extra)[0]}"
    for key, value in live.items():
        if isinstance(value, Tensor) and not is_lazy(value):
            ours, theirs = (value.dtype, tuple(value.shape)), (saved[key].dtype, tuple(saved[key].shape))
            if ours != theirs:
                return f"{key} is {theirs[0]} {theirs[1]} there and {ours[0]} {ours[1]} here"
    return None


def random_state() -> dict[str, Any]:
    """Returns the states of the global generators of torch on every device, of NumPy and of Python."""
    name, key, *numbers = np.random.get_state()  # noqa: NPY002, the global generator is the one to save
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(key).astype(np.int64)), *numbers),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any], *, warn: bool = False) -> None:
    """Gives the global generators the states they had; says, if it should, that there are other devices than then."""
    random.setstate(state["python"])
    name, key, *numbers = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *numbers))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if warn and len(state["cuda"]) != count:
        text = f"saved with {len(state['cuda'])} CUDA devices, loaded with {count}: their random numbers will differ"
        warnings.warn(text, stacklevel=3)
    for device, device_state in enumerate(state["cuda"][:count]):
        torch.cuda.set_rng_state(device_state, device)
