"""Contents of objects, kept aside and put back into the same objects bit for bit."""

from __future__ import annotations

import copy
import random
from collections import UserList, deque
from collections.abc import MutableMapping
from contextlib import nullcontext
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from fusedopt.lr_finder.copies import Copies

GENERATORS = torch.Generator | np.random.Generator | random.Random


class Kept:
    """What was in objects at one moment.

    Kept are tensors and arrays, containers with their members, generators, modules (parameters, buffers, modes, extra
    states), and the attributes of optimizers, of data classes and of whatever else has a state to save (`state_dict`
    and `load_state_dict`): by attributes, since loading a `state_dict` may round, and may leave things out. An object
    of another kind is none of this class's business: it may be a file, or somebody's data set.

    Args:
        besides: leaves out what that keeps already.
    """

    _MAPPINGS: tuple[type, ...] = (MutableMapping,)

    def __init__(self, besides: Kept | None = None) -> None:
        # The objects themselves: another one could get the address of one that is gone.
        self._visited: dict[int, Any] = {} if besides is None else dict(besides._visited)
        self.optimizers: list[Optimizer] = []
        """Those that are kept: an optimizer, and one that it wraps."""
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[Tensor] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._generators: list[tuple[Any, Any]] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        self._extra_states: list[tuple[nn.Module, Any]] = []
        self._gradients: list[tuple[Tensor, Tensor | None]] = []

    def holds(self, value: object) -> bool:
        """Whether the object is kept."""
        return id(value) in self._visited

    def _is_new(self, value: object) -> bool:
        new = id(value) not in self._visited
        self._visited[id(value)] = value
        return new

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._keep_tensor(value)
        elif isinstance(value, np.ndarray):
            if self._is_new(value) and value.flags.writeable:
                self._arrays.append((value, value.copy()))
        elif isinstance(value, GENERATORS):
            if self._is_new(value):
                self._generators.append((value, _state_of(value)))
        elif isinstance(value, nn.Module):
            self._keep_module(value)
        elif isinstance(value, (*self._MAPPINGS, list, deque, UserList, set)):
            self._keep_container(value)
        elif isinstance(value, tuple):
            for item in value if self._is_new(value) else ():
                self._keep(item)
        elif isinstance(value, Optimizer):
            self._keep_optimizer(value)
        elif _has_state(value) and self._is_new(value):
            self._keep(vars(value))

    def _keep_tensor(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            raise ValueError(
                "a parameter has no shape yet; run one batch through the model before looking for a learning rate"
            )
        if self._is_new(tensor):
            self._tensors.append(tensor)

    def _keep_module(self, module: nn.Module) -> None:
        for child in module.modules():
            if self._is_new(child):
                self._modes.append((child, child.training))
                self._keep(child._parameters)
                self._keep(child._buffers)
                if type(child).get_extra_state is not nn.Module.get_extra_state:
                    self._extra_states.append((child, copy.deepcopy(child.get_extra_state())))

    def _keep_optimizer(self, optimizer: Optimizer) -> None:
        if self._is_new(optimizer):
            self.optimizers.append(optimizer)
            for name, hooks in vars(optimizer).items():
                if name.endswith("_hooks"):  # a finder's snapshot may be older than a hook; Surroundings keeps them
                    self._is_new(hooks)
            self._keep(vars(optimizer))

    def _keep_container(self, container: Any) -> None:
        if not self._is_new(container):
            return
        contents = dict(container) if isinstance(container, MutableMapping) else list(container)
        self._containers.append((container, contents))
        for item in contents.values() if isinstance(contents, dict) else contents:
            self._keep(item)

    def _copy(self, folder: Path | None = None) -> None:
        """Takes the copies: once, after everything has been named."""
        for tensor in list(self._tensors):
            if tensor.is_leaf and tensor.requires_grad:
                self._gradients.append((tensor, tensor.grad))
                self._keep(tensor.grad)
        # Tensors that share their memory with the originals, for those that move to another device meanwhile.
        self._homes = [tensor.detach() for tensor in self._tensors]
        self._copies = Copies([tensor.detach().clone() for tensor in self._tensors], folder)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back; may be called any number of times."""
        for container, contents in self._containers:
            container.clear()
            if isinstance(container, MutableMapping | set):
                container.update(contents)
            else:
                container.extend(contents)
        for tensor, home, saved in zip(self._tensors, self._homes, self._copies.load(), strict=True):
            if (tensor.device, tensor.dtype, tensor.shape) != (home.device, home.dtype, home.shape):
                tensor.data = home
            if not _overlaps_itself(tensor):
                with torch.inference_mode() if tensor.is_inference() else nullcontext():
                    tensor.copy_(saved)
        for array, values in self._arrays:
            array[...] = values
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        for module, state in self._extra_states:
            module.set_extra_state(copy.deepcopy(state))
        for module, training in self._modes:
            module.training = training
        for generator, state in self._generators:
            _set_state(generator, state)


def put_back(*kept: Kept) -> None:
    """Restores each, and finishes what a Ctrl-C breaks off before it is raised."""
    interrupted = None
    for each in kept:
        try:
            each.restore()
        except KeyboardInterrupt as error:
            interrupted = error
            each.restore()
    if interrupted is not None:
        raise interrupted


def _has_state(value: Any) -> bool:
    """Whether it is plain data, or has a state to save and load, in attributes."""
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return False
    return is_dataclass(value) or all(hasattr(type(value), name) for name in ("state_dict", "load_state_dict"))


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether it is an expanded view; torch refuses to write to one, so nothing can have changed it."""
    if tensor.layout != torch.strided:
        return False
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
