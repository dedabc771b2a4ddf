"""Interleaved timing: several calls that do the same work, measured in turn so that they share the machine's moods."""

import gc
import math
import os
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

Run = Callable[[], object]
Clock = Callable[[Run, int], float]

BATCH_SECONDS = 0.01
FEWEST_REPEATS = 5
WARM_UP = 3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> "Spread":
        """The median and quartiles of ``sample``, which may be a single value."""
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        low, median, high = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Sample:
    """Seconds per call, one value for each repeat; each repeat timed a batch of ``calls`` calls."""

    calls: int
    seconds: list[float]

    def relative_to(self, other: "Sample") -> Spread:
        """How many times faster than ``other``, from the ratios of the two within each repeat."""
        return Spread.of([theirs / mine for mine, theirs in zip(self.seconds, other.seconds, strict=True)])


def host_clock(run: Run, calls: int) -> float:
    """Seconds per call by the host's clock, for work that is done when the call returns."""
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls


def gpu_clock(run: Run, calls: int) -> float:
    """Seconds per call until the current GPU has done its work, so that the slower of host and GPU decides."""
    torch.cuda.synchronize()
    start = perf_counter()
    for _ in range(calls):
        run()
    torch.cuda.synchronize()
    return (perf_counter() - start) / calls


CLOCKS: dict[str, Clock] = {"cpu": host_clock, "cuda": gpu_clock}  # by device type


def clock_for(device: torch.device) -> Clock:
    """The clock that is right for work on ``device``."""
    if device.type not in CLOCKS:
        raise ValueError(f"no clock for device type {device.type!r}; there is one for {' and '.join(CLOCKS)}")
    return CLOCKS[device.type]


def mark(device: torch.device) -> Any:
    """This moment: seconds of the host's clock, or an event on the GPU's stream; see `between`.

    None while a CUDA graph is captured: its work is done later, as often as it is replayed.
    """
    if device.type != "cuda":
        return perf_counter()
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
    return event


def between(start: Any, end: Any) -> float:
    """Seconds from one mark to another of the same device; waits until the latter is over."""
    if isinstance(end, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end) * 1e-3)


def turns(names: Sequence[str], *, most: int, fewest: int = FEWEST_REPEATS, seconds: float = math.inf) -> Iterator[str]:
    """The names in turn, each once in every repeat, in an order drawn anew each time.

    Each finds the caches as its predecessor left them: none keeps the same one. There are ``most`` repeats, or as many
    as are begun within ``seconds``, but no fewer than ``fewest``.
    """
    order, shuffle, start, repeats = list(names), random.Random(0).shuffle, perf_counter(), 0
    while repeats < min(fewest, most) or (repeats < most and perf_counter() - start < seconds):
        shuffle(order)
        yield from order
        repeats += 1


def interleave(
    runs: Mapping[str, Run],
    clock: Clock,
    repeats: int,
    seconds: float,
    fewest: int = FEWEST_REPEATS,
    batch: float = BATCH_SECONDS,
) -> dict[str, Sample]:
    """Time each of ``runs`` once per repeat, in an order drawn anew each time.

    There are ``repeats`` repeats, or as many as fit into ``seconds``, but no fewer than ``fewest``. Each run is called
    `WARM_UP` times before. Calls shorter than ``batch``, in seconds, are timed in batches of about this length.
    """
    start = perf_counter()
    with _no_garbage_collection():
        estimates = {}
        for name, run in runs.items():
            clock(
                run, WARM_UP - 1
            )  # The first call makes the states, the second may still touch memory for the first time.
            estimates[name] = clock(run, 1)
        calls = {name: max(1, math.ceil(batch / estimate)) for name, estimate in estimates.items()}
        round_seconds = sum(calls[name] * estimate for name, estimate in estimates.items())
        repeats = min(repeats, max(fewest, int(seconds / round_seconds)))

        samples = {name: Sample(calls[name], []) for name in runs}
        left = seconds - (perf_counter() - start)  # the machine may become slower than it was
        for name in turns(list(runs), most=repeats, fewest=fewest, seconds=left):
            samples[name].seconds.append(clock(runs[name], calls[name]))
    return samples


class OtherWork:
    """How busy the rest of the machine is, from the making of this object on.

    Another process on one of the cores makes every thread of a parallel region wait for the one that was preempted:
    short steps become hundreds of times slower, and ratios meaningless.
    """

    def __init__(self) -> None:
        self._wall, self._busy = perf_counter(), self._busy_seconds()

    def cores(self) -> float:
        """The number of cores that other processes (or another guest of the same host) kept busy."""
        return max(0.0, (self._busy_seconds() - self._busy) / (perf_counter() - self._wall))

    @staticmethod
    def _busy_seconds() -> float:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:  # not Linux: nobody says
            return 0.0
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - process_time()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
