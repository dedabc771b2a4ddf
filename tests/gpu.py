"""The GPU that the tests of the CUDA back end run on: a real one, or the executor in a build for it.

All other tests run on the CPU. `FUSEDOPT_TEST_DEVICE=cuda` makes it the default device, and so runs what a user relies
on, from schedulers to checkpoints, on CUDA tensors; a build for the executor does so with its GPU.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import virtual_gpu

from fusedopt import _C

ON_CPU = _C.GPU == "cpu"
COLLECTED = os.environ.get("FUSEDOPT_COLLECT") == "1"  # to be collected only, as if there were a real GPU
AVAILABLE = ON_CPU or COLLECTED or (_C.GPU == "cuda" and torch.cuda.is_available())
REAL = AVAILABLE and (COLLECTED or not ON_CPU)
DEVICE = virtual_gpu.DEVICE if ON_CPU else _C.GPU or "cpu"
TEST_DEVICE = os.environ.get("FUSEDOPT_TEST_DEVICE", DEVICE if ON_CPU else "cpu")
TEST_DEVICE_TYPE = torch.device(TEST_DEVICE).type
# The host does not wait to learn whether a device has skipped a step: it has made the states by then.
ASYNCHRONOUS = TEST_DEVICE != "cpu"


def work(step: Callable[[], Any]) -> tuple[int, int, int]:
    """Kernel launches, copies and memsets of a call: by the executor's count, on a real GPU by the profiler's."""
    if ON_CPU:
        _C.executor.counters()
        step()
        return _C.executor.counters()[:3]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    names = [name for name in names if not name.startswith("Optimizer.")]  # step()'s label is on its time line too
    copies, memsets = (sum(name.startswith(kind) for name in names) for kind in ("Memcpy", "Memset"))
    return len(names) - copies - memsets, copies, memsets


@contextmanager
def stream(number: int) -> Iterator[None]:
    """Makes another stream the current one."""
    if ON_CPU:
        _C.executor.set_stream(number)
        try:
            yield
        finally:
            _C.executor.set_stream(0)
        return
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        yield
    torch.cuda.current_stream().wait_stream(other)


class Graph:
    """The captured work of a call, which capturing does not do."""

    _graph: int | None = None
    _captures = itertools.count()

    def __init__(self, step: Callable[[], Any]) -> None:
        if ON_CPU:
            # On the streams in turns, as torch takes those of its pool.
            _C.executor.set_stream(1 + next(self._captures) % 8)
            try:
                _C.executor.begin_capture()
                try:
                    step()
                finally:
                    self._graph = _C.executor.end_capture()
            finally:
                _C.executor.set_stream(0)
            return
        self._cuda_graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._cuda_graph):
            step()

    def __del__(self) -> None:
        if self._graph is not None:
            _C.executor.destroy(self._graph)

    def replay(self) -> None:
        if ON_CPU:
            _C.executor.replay(self._graph)
        else:
            self._cuda_graph.replay()


def unwatched() -> AbstractContextManager[None]:
    """Inside, the virtual GPU does not look at what torch does, which takes many times as long as doing it."""
    context: AbstractContextManager[None] = torch._C.DisableTorchFunction() if ON_CPU else nullcontext()
    return context


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """The host must wait for nothing inside."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
