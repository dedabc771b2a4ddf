"""The GPU benchmark's device, with a stand-in for torch.cuda: clocks, counts, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusedopt.benchmark import devices
from fusedopt.benchmark.devices import Cuda, Host, Work


class FakeEvent:
    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1e3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A Cuda whose clock moves by what it is told to spin: a card of 1 GHz."""

    def spin(cycles: int) -> None:
        FakeEvent.now += cycles / 1e9

    @contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    properties = SimpleNamespace(L2_cache_size=2**12, name="NVIDIA Test", total_memory=2**37, multi_processor_count=132)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Event": FakeEvent,
        "_sleep": spin,
        "synchronize": lambda *_: None,
        "get_device_properties": lambda _: properties,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _: (2**20, 2**21),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": nothing,
        "graph": nothing,
        "CUDAGraph": lambda: SimpleNamespace(replay="replay"),
    }
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Cuda(torch.device("cpu"))


def test_device_time_is_that_between_the_events(cuda: Cuda) -> None:
    cold = []
    cuda._cold = SimpleNamespace(sum=lambda: cold.append(FakeEvent.now))  # type: ignore[assignment]
    start = FakeEvent.now

    def run() -> None:
        FakeEvent.now += 0.002

    assert cuda.device_seconds(run, head_start=0.01) == pytest.approx(0.002)
    assert cold[0] - start == pytest.approx(0.0201), "the host had no head start"
    cuda.device_seconds(run, head_start=1.0)
    assert cold[1] - cold[0] == pytest.approx(0.002 + Cuda.MAX_HEAD_START)


def test_the_cold_buffer_is_four_times_the_cache(cuda: Cuda) -> None:
    assert cuda._cold.numel() * 4 >= 4 * 2**12


def test_device_describes_itself_and_captures(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(stdout="580.1\n")
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: done)
    described = cuda.describe()
    assert described["gpu"] == "NVIDIA Test"
    assert described["driver"] == "580.1"
    assert {"date", "torch", "cuda", "L2 MiB"} <= described.keys()
    calls: list[int] = []
    assert cuda.graph(lambda: calls.append(1)) == "replay"  # type: ignore[comparison-overlap]
    assert len(calls) == 4
    assert cuda.free_bytes() == 2**20


def test_no_driver_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(devices.subprocess, "run", missing)
    assert devices._driver() == "unknown"


def test_work_is_counted_by_kind(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = torch.autograd.DeviceType

    def event(name: str, device: Any = kinds.CUDA, annotation: bool = False) -> Any:
        span = SimpleNamespace(elapsed_us=lambda: 2.5)
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=annotation, time_range=span)

    events = [event("apply"), event("sum_squares"), event("Memcpy HtoD (Pageable -> Device)"), event("Memset (Device)")]
    events += [event("cudaLaunchKernel", kinds.CPU), event("Optimizer.step#AdamW.step", annotation=True)]

    @contextmanager
    def profile(activities: Any) -> Iterator[Any]:
        yield SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(torch.profiler, "profile", profile)
    ran: list[int] = []
    assert cuda.work(lambda: ran.append(1)) == Work(2, 1, 1, pytest.approx(10e-6))
    assert ran == [1]


def test_copy_bandwidth_counts_both_ways() -> None:
    class Clocked(Host):
        def device_seconds(self, run: Callable[[], object], head_start: float) -> float:
            run()
            return 0.5

        def free_bytes(self) -> int:
            return 32_000

    assert devices.copy_bandwidth(Clocked(), repeats=3) == 8 * 1000 / 0.5
