"""A GPU as far as Python can see it, for the build whose GPU is the CPU: a test that mixes devices fails there, too.

A tensor made on the device `cpu:0` says that it lies there, one made on `cpu` says `cpu`, and what is computed from
tensors of the former lies with them. Tensors that no operation of torch takes together are refused, as between a GPU
and the CPU. In memory all are ordinary tensors of the CPU, and nothing of this is seen below Python.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

DEVICE = "cpu:0"

# Where tensors of both may meet, whatever their shapes; and where not even a number may join tensors of the other.
_MEET = {"copy_", "to", "type_as", "__getitem__", "__setitem__", "index_put_", "set_", "__deepcopy__"}
_STRICT = {"equal", "cat", "stack"}
_DEVICE, _GRAD = Tensor.device.__get__, Tensor.grad.__get__
_storage_id = torch._C._storage_id  # that of untyped_storage()._cdata


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class VirtualGpu(TorchFunctionMode):
    """While it is active, `torch.device("cpu", 0)` is another device than `torch.device("cpu")`."""

    def __init__(self) -> None:
        super().__init__()
        # The storages that lie there. A weak reference keeps the number of a storage from being given to another.
        self._storages: dict[int, StorageWeakRef] = {}

    def __enter__(self) -> Self:
        copyreg.pickle(Tensor, self._pickled)  # type: ignore[arg-type]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        copyreg.dispatch_table.pop(Tensor)
        super().__exit__(*error)

    def _pickled(self, t: Tensor) -> tuple[Any, ...]:
        reduced: tuple[Any, ...] = t.__reduce_ex__(2)
        return (_unpickled, reduced[:2]) if self._lies_here(t) else reduced

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args[0])
        with torch._C.DisableTorchFunction():  # no mode is asked, which costs ten times as much
            taken = [(self._lies_here(t), t) for t in _tensors((args, kwargs.values()))]
            here = any(where for where, _ in taken)
            if here and name not in _MEET and any(not w and (t.dim() or name in _STRICT) for w, t in taken if t.is_cpu):
                raise RuntimeError(f"Expected all tensors to be on the same device, in {name}")
            asked = _asked(func, name, args, kwargs)
            here = here if asked is None else asked
            here = taken[0][0] if name == "copy_" else here
        result = func(*args, **kwargs)
        if name in ("to", "cpu") and any(result is t and where != here for where, t in taken[:1]):
            result = result.clone()
        if here:
            with torch._C.DisableTorchFunction():
                for t in _tensors((result,)):
                    self._add(t)
        return result

    def _attribute(self, func: Any, t: Tensor) -> Any:
        value = func(t)
        if func == _DEVICE or (func == _GRAD and value is not None):
            with torch._C.DisableTorchFunction():
                if self._lies_here(t):
                    if func == _DEVICE:
                        return torch.device(DEVICE)
                    self._add(value)  # which a backward may have made
        return value

    def _add(self, t: Tensor) -> None:
        for part in _parts(t):
            if part.is_cpu and _storage_id(part) not in self._storages:
                self._storages[_storage_id(part)] = StorageWeakRef(part.untyped_storage())

    def _lies_here(self, t: Tensor) -> bool:
        return any(_storage_id(part) in self._storages for part in _parts(t))

    def forget(self) -> None:
        """Drops what is known of tensors that are gone."""
        self._storages = {number: ref for number, ref in self._storages.items() if not ref.expired()}


def _unpickled(make: Any, arguments: Any) -> Tensor:
    """A tensor that was saved here, here again."""
    t: Tensor = make(*arguments)
    return t.to(DEVICE)


torch.serialization.add_safe_globals([_unpickled])


def _parts(t: Tensor) -> list[Tensor]:
    if t.layout == torch.strided:
        return [t]
    return [t._indices(), t._values()] if t.layout == torch.sparse_coo else []


def _asked(func: Any, name: str, args: Any, kwargs: Any) -> bool | None:
    """Whether a call asks for a result here, or elsewhere, or does not say."""
    device = "cpu" if name == "cpu" else kwargs.get("device")
    if device is None and name == "to":
        device = next((a for a in args if isinstance(a, torch.device | str)), None)
    if device is None and func in _device_constructors():
        device = torch.get_default_device()
    return None if device is None else torch.device(device) == torch.device(DEVICE)
