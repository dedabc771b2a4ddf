"""torch.optim's classes replaced by ours, for code that names them itself: `install`, `uninstall`, `installed`.

What is replaced is a class's constructor, not its name: code that did ``from torch.optim import AdamW`` long before is
served as well, and nothing else of the class changes, neither for its subclasses nor for instances that exist, are
copied or unpickled. It is done in `__init__`, which gives a new instance its other class, not in `__new__`: once a
class has had a `__new__` of its own, CPython cannot take it away again so that the class can still be called.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from fusedopt import optim

_Optimizer = TypeVar("_Optimizer", bound=Optimizer)
Listener = Callable[[Optimizer], None]

REPLACEMENTS: dict[type[Optimizer], type[Optimizer]] = {
    getattr(torch.optim, name): getattr(optim, name)
    for name in torch.optim.__all__
    if getattr(optim, name) is not getattr(torch.optim, name)
}
"""torch's class to ours, for each that has a fused step."""

_lock = threading.Lock()
_wanted = False  # by install()
_blocks = 0  # of installed() that are running
_inits: dict[type[Optimizer], tuple[Any, Any]] = {}  # while replaced: by class, torch's constructor and ours
_listeners: list[Listener] = []


def install() -> None:
    """Makes torch.optim's classes give fusedopt's optimizers, in the whole process.

    ``torch.optim.AdamW(...)`` then makes a `fusedopt.AdamW`, which is a `torch.optim.AdamW` too. Subclasses of torch's
    classes and existing optimizers stay as they are. Calling it again changes nothing.
    """
    _change(wanted=True)


def uninstall() -> None:
    """Undoes `install`. Optimizers made in between stay fusedopt's.

    Blocks of `installed` that are running in other threads keep the classes replaced to their end.
    """
    _change(wanted=False)


@contextmanager
def installed() -> Iterator[None]:
    """Replaces torch.optim's classes inside the block, as `install` does, in all threads."""
    _change(blocks=1)
    try:
        yield
    finally:
        _change(blocks=-1)


def torchs_own(cls: type[_Optimizer], *args: Any, **kwargs: Any) -> _Optimizer:
    """What ``cls(*args, **kwargs)`` gives where nothing is replaced."""
    optimizer = cls.__new__(cls)
    with _lock:
        init, _ = _inits.get(cls, (cls.__init__, None))
    init(optimizer, *args, **kwargs)
    return optimizer


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Calls `listener` in the block with each instance that takes the place of one of torch's, before it is set up."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _change(*, wanted: bool | None = None, blocks: int = 0) -> None:
    global _wanted, _blocks
    with _lock:
        _wanted = _wanted if wanted is None else wanted
        _blocks += blocks
        if _wanted or _blocks:
            for theirs, ours in REPLACEMENTS.items():
                if theirs not in _inits:
                    _inits[theirs] = theirs.__init__, _constructor(theirs, ours)
                    setattr(theirs, "__init__", _inits[theirs][1])  # noqa: B010, mypy has none of an assignment
            return
        for theirs, (before, replacing) in _inits.items():
            if theirs.__init__ is replacing:  # else somebody has wrapped it since, and it only passes on from here
                setattr(theirs, "__init__", before)  # noqa: B010
        _inits.clear()


def _constructor(theirs: type[Optimizer], ours: type[Optimizer]) -> Callable[..., None]:
    before: Callable[..., None] = theirs.__init__

    @functools.wraps(before)  # with its signature, which configuration libraries read
    def init(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        if type(self) is not theirs or theirs not in _inits:
            before(self, *args, **kwargs)
            return
        self.__class__ = ours
        for listener in tuple(_listeners):
            listener(self)
        self.__init__(*args, **kwargs)  # type: ignore[misc]

    return init
