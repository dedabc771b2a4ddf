"""What a range test touches beside what it trains: step hooks with their owners, loaders with their samplers."""

from __future__ import annotations

import dis
import functools
from collections import UserDict, deque
from collections.abc import Iterable, Iterator
from itertools import chain
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from fusedopt.lr_finder.kept import GENERATORS, Kept
from fusedopt.lr_finder.snapshot import RandomState

_SEVERAL = ("datasets", "transforms")
_PARTS = {"dataset", "sampler", "batch_sampler", "loader", "data_loader", "dataloader", "transform", "target_transform"}
_PARTS |= {"collate_fn", "worker_init_fn", *_SEVERAL}
_NO_OWNERS = (type, ModuleType, DataLoader, Dataset, Sampler)
_DEPTH = 6  # of parts in parts: a loader, its data set, the one that is a subset of, its transforms


class Surroundings(Kept):
    """The state of random number generators, of what step hooks hold, and of loaders' samplers.

    Step hooks run in a test as they do in training, of which they may be a part: noise, clipping. What they change is
    put back: the attributes of the object whose method a hook is; the variables that a function has from around it and
    the global ones that it uses; and among these everything that `Kept` keeps, such as an averaged model, and objects
    with numbers in their attributes.

    Of samplers the attributes are kept, which is where their positions are; of data sets and loaders of one's own the
    attributes that are numbers, such as an epoch. Their samples are not looked at.

    Args:
        snapshot: what is trained, and need not be kept again; its optimizers' hooks are looked at, and everyone's.
        device: the device that the test will run on.
        owners: loaders, modules and functions, which are searched for generators.
    """

    _MAPPINGS = (dict, UserDict)  # others may be files, or the environment

    def __init__(self, snapshot: Kept, device: torch.device, owners: Iterable[Any]) -> None:
        super().__init__(snapshot)
        self._cells: list[tuple[CellType, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._parts: dict[int, Any] = {}
        self._numbers: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._random = RandomState(device)
        everyones = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
        for hooks in (*chain(*map(_step_hooks, snapshot.optimizers)), *everyones):
            self._containers.append((hooks, dict(hooks)))
            for hook in hooks.values():
                self._keep_callable(hook)
        for owner in owners:
            self._keep_part(owner)
        self._copy()

    def restore(self) -> None:
        """Puts everything back; may be called any number of times."""
        self._random.restore()
        super().restore()
        for cell, contents in self._cells:
            cell.cell_contents = contents
        for namespace, name, value in self._globals:
            namespace[name] = value
        for attributes, numbers in self._numbers:
            attributes.update(numbers)

    def _keep(self, value: Any) -> None:
        if _holds_numbers(value) and self._is_new(value):
            super()._keep(vars(value))
        else:
            super()._keep(value)

    def _keep_tensor(self, tensor: Tensor) -> None:
        # What was computed with a graph is a result, not a state; writing to it would make its graph useless.
        if tensor.grad_fn is None:
            super()._keep_tensor(tensor)

    def _keep_callable(self, function: Any) -> None:
        if not self._is_new(function):
            return
        if isinstance(function, functools.partial):
            self._keep_callable(function.func)
            self._keep([*function.args, *function.keywords.values()])
        elif isinstance(function, MethodType):
            self._keep_owner(function.__self__)
            self._keep_callable(function.__func__)
        elif isinstance(function, FunctionType):
            self._keep_function(function)
        else:
            self._keep_owner(function)

    def _keep_owner(self, owner: Any) -> None:
        if hasattr(owner, "__dict__") and not isinstance(owner, _NO_OWNERS):
            self._keep(vars(owner))

    def _keep_function(self, function: FunctionType) -> None:
        self._keep([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()])
        for cell in function.__closure__ or ():
            if (value := _contents(cell)) is not cell:
                self._cells.append((cell, value))
                self._keep_variable(value, function)
        namespace = function.__globals__
        for instruction in _instructions(function.__code__):
            name = instruction.argval
            if instruction.opname not in ("LOAD_GLOBAL", "STORE_GLOBAL") or name not in namespace:
                continue
            value = namespace[name]
            # Functions of the same module are looked into, those of libraries are not.
            if not isinstance(value, FunctionType) or value.__globals__ is namespace:
                self._keep_variable(value, function)
            if instruction.opname == "STORE_GLOBAL":
                self._globals.append((namespace, name, value))

    def _keep_variable(self, value: Any, function: FunctionType) -> None:
        """A variable of a function's, which may be another one that it wraps, or an object that it calls."""
        if isinstance(value, FunctionType | MethodType | functools.partial):
            self._keep_callable(value)
        elif isinstance(value, BuiltinMethodType):  # such as list.append
            self._keep(value.__self__)
        elif type(value).__module__ == function.__module__:
            self._keep_owner(value)
        else:
            self._keep(value)

    def _keep_part(self, part: Any, depth: int = _DEPTH) -> None:
        """The generators of a loader, a data set, a transformation, a module; the positions of samplers."""
        if isinstance(part, GENERATORS):
            self._keep(part)
        if isinstance(part, Tensor | GENERATORS | type) or not depth or id(part) in self._parts:
            return
        self._parts[id(part)] = part
        for value in _variables(part):
            self._keep_part(value, depth - 1)
        attributes = getattr(part, "__dict__", {})
        for name, value in attributes.items():
            if isinstance(value, GENERATORS):
                self._keep(value)
            elif name in _SEVERAL and isinstance(value, list | tuple):
                for item in value:
                    self._keep_part(item, depth - 1)
            elif name in _PARTS:
                self._keep_part(value, depth - 1)
        if isinstance(part, Sampler):
            self._keep_position(attributes)
        elif _counts(part):
            numbers = {name: value for name, value in attributes.items() if type(value) in (int, float)}
            self._numbers.append((attributes, numbers))

    def _keep_position(self, attributes: dict[str, Any]) -> None:
        self._containers.append((attributes, dict(attributes)))
        for name, value in attributes.items():
            if isinstance(value, list | deque | dict | set) and name not in ("dataset", "data_source"):
                self._containers.append((value, value.copy()))


def _step_hooks(optimizer: Optimizer) -> list[dict[int, Any]]:
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [vars(optimizer)[name] for name in names if name in vars(optimizer)]


def _counts(part: Any) -> bool:
    """Whether it may count in its attributes how often it was gone through: a data set, a loader of somebody's own."""
    starts_over = hasattr(type(part), "__iter__") and not hasattr(type(part), "__next__")
    return isinstance(part, Dataset) or (starts_over and not isinstance(part, DataLoader))


def _holds_numbers(value: Any) -> bool:
    """Whether it is an object of somebody's own with tensors and the like in its attributes: such as an average."""
    if isinstance(value, (Tensor, nn.Module, Optimizer, *_NO_OWNERS)) or not hasattr(value, "__dict__"):
        return False
    attributes = [*vars(value).values()]
    inner = [item for box in attributes if isinstance(box, dict) for item in box.values()]
    inner += [item for box in attributes if isinstance(box, list) for item in box]
    return any(isinstance(item, Tensor | np.ndarray | nn.Module | GENERATORS) for item in (*attributes, *inner))


def _contents(cell: CellType) -> Any:
    """What a variable of an enclosing function holds; the cell itself where that has not been set yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Those of a function and of the ones that are defined in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


def _variables(function: Any) -> list[Any]:
    """What a function, a method or a partial brings along."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    if isinstance(function, FunctionType):
        return [*map(_contents, function.__closure__ or ()), *(function.__defaults__ or ())]
    return []
