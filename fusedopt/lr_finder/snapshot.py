"""What a range test changes, kept aside and put back bit for bit."""

from __future__ import annotations

import copy
import os
import random
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer


class Snapshot:
    """Parameters, buffers, gradients, train/eval modes, optimizer state and scaler state at one moment.

    Everything is put back into the objects it was read from: the same parameters, the same gradients (None where there
    was none), the same states, with the same values. `state_dict` would not do: it leaves out gradients, modes and
    buffers that are not persistent, and loading one rounds float32 states of bfloat16 parameters.

    Args:
        modules: the model, and the criterion where it is a module.
        optimizer: its `state`, `param_groups` and other attributes; parameters that no module holds are kept too.
        scaler: a `torch.amp.GradScaler`.
        folder: where to keep the copies of the tensors, in a temporary file; None keeps them in memory, each on its
            own device.

    Raises:
        ValueError: a parameter has no shape yet.
    """

    def __init__(
        self, modules: Iterable[nn.Module], optimizer: Optimizer, scaler: Any = None, folder: Path | None = None
    ) -> None:
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: dict[int, Tensor] = {}
        self._gradients: list[tuple[Tensor, Tensor | None]] = []
        self._visited: set[int] = set()
        self._modes: list[tuple[nn.Module, bool]] = []
        self._extra_states: list[tuple[nn.Module, Any]] = []
        for module in dict.fromkeys(child for parent in modules for child in parent.modules()):
            self._modes.append((module, module.training))
            self._keep(module._parameters)
            self._keep(module._buffers)
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                self._extra_states.append((module, copy.deepcopy(module.get_extra_state())))
        self._keep(optimizer)
        self._keep(optimizer.state)  # on their own, since wrappers have them as properties
        self._keep(optimizer.param_groups)
        if scaler is not None:
            self._keep(vars(scaler))
        for tensor in list(self._tensors.values()):
            if tensor.is_leaf and tensor.requires_grad:
                self._gradients.append((tensor, tensor.grad))
                self._keep(tensor.grad)
        # Tensors that share their memory with the originals, for those that move to another device meanwhile.
        self._homes = [tensor.detach() for tensor in self._tensors.values()]
        self._copies = _Copies([tensor.detach().clone() for tensor in self._tensors.values()], folder)

    def _keep(self, value: Any) -> None:
        if id(value) in self._visited:
            return
        self._visited.add(id(value))
        if isinstance(value, Tensor):
            if is_lazy(value):
                raise ValueError(
                    "a parameter has no shape yet; run one batch through the model before looking for a learning rate"
                )
            self._tensors[id(value)] = value
        elif isinstance(value, Optimizer):
            self._keep(vars(value))
        elif isinstance(value, dict):
            self._containers.append((value, dict(value)))
            for item in value.values():
                self._keep(item)
        elif isinstance(value, list | tuple):
            if isinstance(value, list):
                self._containers.append((value, list(value)))
            for item in value:
                self._keep(item)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back; may be called any number of times."""
        for container, contents in self._containers:
            container.clear()
            if isinstance(container, dict):
                container.update(contents)
            else:
                container.extend(contents)
        for tensor, home, saved in zip(self._tensors.values(), self._homes, self._copies.load(), strict=True):
            if (tensor.device, tensor.dtype, tensor.shape) != (home.device, home.dtype, home.shape):
                tensor.data = home
            if not _overlaps_itself(tensor):
                tensor.copy_(saved)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        for module, state in self._extra_states:
            module.set_extra_state(copy.deepcopy(state))
        for module, training in self._modes:
            module.training = training


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether it is an expanded view; torch refuses to write to one, so nothing can have changed it."""
    if tensor.layout != torch.strided:
        return False
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


class _Copies:
    """Tensors, in memory or in a file that goes with this object."""

    def __init__(self, tensors: list[Tensor], folder: Path | None) -> None:
        self._tensors, self._path = tensors, None
        if folder is not None:
            handle, name = tempfile.mkstemp(prefix="fusedopt-lr-finder-", suffix=".pt", dir=folder)
            os.close(handle)
            self._tensors, self._path = [], Path(name)
            weakref.finalize(self, self._path.unlink, missing_ok=True)
            torch.save(tensors, self._path)

    def load(self) -> list[Tensor]:
        if self._path is None:
            return self._tensors
        tensors: list[Tensor] = torch.load(self._path, map_location="cpu", weights_only=True)
        return tensors


class RandomState:
    """The state of every random number generator that a range test can draw from.

    Those of Python, NumPy and torch, on the CPU and on all devices in use, and generators that the given objects hold:
    a `DataLoader` with its samplers and data set, a module with a generator of its own.

    Args:
        device: the device that the test will run on, which may not be in use yet.
        owners: objects whose attributes are searched for generators.
    """

    def __init__(self, device: torch.device, owners: Iterable[Any] = ()) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 (the global generator is what there is to keep)
        self._cpu = torch.get_rng_state()
        self._devices: list[tuple[Any, list[Tensor]]] = []
        for kind in ("cuda", "xpu"):
            module = getattr(torch, kind)
            if device.type == kind or (module.is_available() and module.is_initialized()):
                self._devices.append((module, module.get_rng_state_all()))
        self._mps = torch.mps.get_rng_state() if device.type == "mps" else None
        self._own: dict[int, tuple[Any, Any]] = {}
        for generator in (g for owner in owners for g in _generators(owner)):
            self._own[id(generator)] = (generator, _state_of(generator))

    def restore(self) -> None:
        """Puts every generator back; may be called any number of times."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._cpu)
        for module, states in self._devices:
            module.set_rng_state_all(states)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        for generator, state in self._own.values():
            if isinstance(generator, torch.Generator):
                generator.set_state(state)
            elif isinstance(generator, random.Random):
                generator.setstate(state)
            else:
                generator.bit_generator.state = state


_PARTS = ("dataset", "sampler", "batch_sampler", "loader", "data_loader", "dataloader")


def _generators(owner: Any, depth: int = 4) -> Iterator[Any]:
    """The generators among the attributes of an object and of the parts which data loaders are made of."""
    attributes = getattr(owner, "__dict__", {})
    for name, value in attributes.items():
        if isinstance(value, torch.Generator | np.random.Generator | random.Random):
            yield value
        elif name in _PARTS and depth:
            yield from _generators(value, depth - 1)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state
