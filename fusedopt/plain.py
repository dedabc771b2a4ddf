"""Values as a file without code can hold them: tensors, Python's own numbers and strings, and what they are part of."""

from __future__ import annotations

import copy
import io
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

_SCALAR, _ARRAY = "fusedopt.plain.numpy.scalar", "fusedopt.plain.numpy.array"  # keys that mark a tensor
_PYTHONS = (bool, int, float, complex, str, bytes)
_PLAIN = (*_PYTHONS, bytearray, type(None), torch.dtype, torch.device, torch.Size)


def pack(value: Any) -> Any:
    """Replaces what NumPy made by what a file can hold, wherever it is in lists, tuples, sets and dictionaries.

    Numbers and arrays become marked tensors, of which `unpack` makes again what they were: a schedule with a rate in
    float32 goes on in float32, and so does one whose float64 rate meets a factor in float32, where a number of Python's
    would yield. Truth values and text, and numbers that are keys or in a set, become Python's, as they compare the
    same. The value itself is left as it is.
    """
    if isinstance(value, np.number):
        return _marked(_SCALAR, value)
    if isinstance(value, np.generic):
        return _python(value)
    if type(value) is np.ndarray:
        return _marked(_ARRAY, value)
    if isinstance(value, dict):
        packed = [(_python(key), pack(item)) for key, item in value.items()]
        if all(key is k and item is i for (key, item), (k, i) in zip(packed, value.items(), strict=True)):
            return value
        new = copy.copy(value)  # of the same class, with what hangs on it, such as the version of a model's state
        new.clear()
        for key, item in packed:  # a Counter's update would count
            new[key] = item
        return new
    if type(value) in (list, tuple, set):
        items = [_python(item) if type(value) is set else pack(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    return value


def unpack(value: Any) -> Any:
    """Undoes `pack` in what was loaded, in place."""
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(array := value.get(_ARRAY), Tensor):
            return array.numpy()
        if len(value) == 1 and isinstance(scalar := value.get(_SCALAR), Tensor):
            return scalar.numpy()[()]
        for key, item in value.items():
            value[key] = unpack(item)
    elif isinstance(value, list):
        value[:] = map(unpack, value)
    elif type(value) is tuple:
        return tuple(map(unpack, value))
    return value


def foreign_part(value: Any, name: str) -> str | None:
    """Says which part of a packed value no file without code can hold, by its path from `name`; None if there is none.

    Takes no time for tensors and numbers, however large.
    """
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return None
    if isinstance(value, dict):
        for key, item in value.items():
            if foreign_part(key, ""):
                return f"{name} has a key that is {_kind(key)}"
            if found := foreign_part(item, f"{name}[{key!r}]"):
                return found
        return None if type(value) in (dict, OrderedDict, Counter) else f"{name} is {_kind(value)}"
    if type(value) in (list, tuple):
        return next((found for i, item in enumerate(value) if (found := foreign_part(item, f"{name}[{i}]"))), None)
    if type(value) is set:
        return next((f"{name} holds {_kind(item)}" for item in value if foreign_part(item, "")), None)
    return None if loads(value) else f"{name} is {_kind(value)}"


def loads(value: Any) -> bool:
    """Whether a file that holds the value can be loaded without running code."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        return not get_unsafe_globals_in_checkpoint(buffer)
    except Exception:  # pickling an object may run its own code, which may fail in any way
        return False


def _python(value: Any) -> Any:
    """Python's own for a scalar of NumPy's, where there is one; also within a tuple, as keys are."""
    if type(value) is tuple:
        return tuple(map(_python, value))
    number = value.item() if isinstance(value, np.generic) else value
    return number if type(number) in _PLAIN else value


def _marked(mark: str, value: Any) -> Any:
    try:
        return {mark: torch.from_numpy(np.array(value))}
    except (TypeError, ValueError):  # of a kind that torch does not have, or in another byte order
        return value


def _kind(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("a builtins.", "a ")
