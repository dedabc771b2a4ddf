"""What a script's optimizers were, which path their parameters took, and how long their steps were."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fusedopt.benchmark.timing import between, mark
from fusedopt.optim import FusedStep
from fusedopt.replacement import REPLACEMENTS, listening

_THEIRS = {ours: theirs for theirs, ours in REPLACEMENTS.items()}
Mark = Any
"""What `fusedopt.benchmark.timing.mark` gives."""


class Time:
    """A sum of intervals, on the host or on a GPU, which is never waited for before the end."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pending: deque[tuple[Any, Any, int]] = deque()

    def add(self, start: Mark, end: Mark, sign: int = 1) -> None:
        """Adds an interval, or takes it away."""
        if start is None or end is None:
            return
        self._pending.append((start, end, sign))
        while self._pending and (isinstance(self._pending[0][1], float) or self._pending[0][1].query()):
            self._take()

    def seconds(self) -> float:
        """The sum, when all of it is over."""
        while self._pending:
            self._take()
        return self._seconds

    def _take(self) -> None:
        start, end, sign = self._pending.popleft()
        self._seconds += sign * between(start, end)


@dataclass
class Record:
    """One optimizer. Its paths are looked at in steps 1, 2, 4, 8 ..., and at the end if it still lives then."""

    optimizer: weakref.ref[Optimizer]
    cls: type[Optimizer]
    replaced: bool
    steps: int = 0
    seen: int = 0
    time: Time = field(default_factory=Time)
    first: float = 0.0
    last: float = 0.0
    paths: Counter[tuple[str, str]] = field(default_factory=Counter)
    began: dict[int, Mark] = field(default_factory=dict)  # by thread, the step that runs in it

    def look(self) -> None:
        """Takes down the paths of the last step."""
        optimizer = self.optimizer()
        if isinstance(optimizer, FusedStep) and self.seen < self.steps:
            self.seen = self.steps
            self.paths = Counter((each.path, each.reason) for each in optimizer.explain())


class Watch:
    """All optimizers that are replaced or step while `watching` runs."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._known: weakref.WeakKeyDictionary[Optimizer, Record] = weakref.WeakKeyDictionary()

    def made(self, optimizer: Optimizer) -> None:
        """An optimizer in the place of one of torch's."""
        self._record(optimizer, replaced=True)

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """A step begins. What its closure does, the forward and backward pass, is not part of it."""
        if torch.compiler.is_compiling():
            return None
        record = self._known.get(optimizer) or self._record(optimizer, replaced=False)
        device = _device(optimizer)
        record.first = record.first or perf_counter()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        record.began[threading.get_ident()] = mark(device)
        if closure is None:
            return None

        def timed() -> Any:
            start = mark(device)
            try:
                return closure()
            finally:
                record.time.add(start, mark(device), -1)

        if len(args) > 1:
            return (args[0], timed, *args[2:]), kwargs
        return args, {**kwargs, "closure": timed}

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """A step is over."""
        record = self._known.get(optimizer)
        if torch.compiler.is_compiling() or record is None or threading.get_ident() not in record.began:
            return
        record.time.add(record.began.pop(threading.get_ident()), mark(_device(optimizer)))
        record.last = perf_counter()
        record.steps += 1
        if record.steps & (record.steps - 1) == 0:
            record.look()

    def _record(self, optimizer: Optimizer, replaced: bool) -> Record:
        record = Record(weakref.ref(optimizer), type(optimizer), replaced)
        self.records.append(record)
        self._known[optimizer] = record
        return record


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Has `watch` see every optimizer that is replaced or steps in the block."""
    handles = (register_optimizer_step_pre_hook(watch.before), register_optimizer_step_post_hook(watch.after))
    try:
        with listening(watch.made):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for record in watch.records:
            record.look()


def report(watch: Watch) -> list[str]:
    """What a person wants to know of it, a line each."""
    if not watch.records:
        return ["no optimizer was made in this process that fusedopt replaces, and none made a step"]
    kinds: dict[tuple[bool, type[Optimizer]], list[Record]] = {}
    for record in watch.records:
        kinds.setdefault((record.replaced, record.cls), []).append(record)
    lines = []
    for (replaced, cls), records in sorted(kinds.items(), key=lambda kind: not kind[0][0]):
        lines += [f"{len(records)} x {_title(cls, replaced)}", *(f"  {line}" for line in _details(records))]
    return lines


def all_fused(watch: Watch) -> bool:
    """Whether everything that was updated took the fused path."""
    paths = [path for record in watch.records for path, _ in record.paths]
    return bool(paths) and "torch" not in paths and all(issubclass(record.cls, FusedStep) for record in watch.records)


def _title(cls: type[Optimizer], replaced: bool) -> str:
    public = cls is getattr(torch.optim, cls.__name__, None)
    name = f"torch.optim.{cls.__name__}" if public else f"{cls.__module__}.{cls.__qualname__}"
    if replaced:
        return f"torch.optim.{_THEIRS[cls].__name__}, replaced by fusedopt.{cls.__name__}"
    if issubclass(cls, FusedStep):
        return f"{name}, fused by itself"
    if cls in REPLACEMENTS:
        return f"{name}, not replaced: made before, or copied"
    bases = [base.__name__ for base in cls.__mro__ if base in REPLACEMENTS]
    return f"{name}, not replaced: " + (f"a subclass of torch.optim.{bases[0]}" if bases else "fusedopt has none")


def _details(records: list[Record]) -> Iterator[str]:
    paths: Counter[tuple[str, str]] = Counter()
    for record in records:
        paths.update(record.paths)
    words = {"fused": "fused", "torch": "by torch's implementation", "none": "not updated"}
    for (path, reason), count in paths.most_common():
        yield f"{count} parameter{'s' * (count != 1)} {words[path]}: {reason}"
    steps = sum(record.steps for record in records)
    if not steps:
        yield "no step"
        return
    seconds = sum(record.time.seconds() for record in records)
    whole = max(record.last for record in records) - min(record.first for record in records if record.steps)
    share = f", {seconds / whole:.1%} of the time from the first to the last ({_time(whole)})" if steps > 1 else ""
    yield f"{steps} step{'s' * (steps != 1)} in {_time(seconds)}{share}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _device(optimizer: Optimizer) -> torch.device:
    first = next((p for group in optimizer.param_groups for p in group["params"]), None)
    return torch.device("cpu") if first is None else first.device
