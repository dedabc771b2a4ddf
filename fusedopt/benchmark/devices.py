"""What the GPU benchmark asks a device for: times, counts of work, graphs. The host stands in to try the benchmark out.

Device time is measured with CUDA events around one step. Before each, a kernel spins so that the host has issued the
whole step when the device comes to it, and a buffer of four times the L2 cache is read, so that the step finds none of
its operands there.
"""

import datetime
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What a device is given to do in one call, and the time in its kernels, in seconds."""

    kernels: int
    copies: int
    memsets: int
    kernel_seconds: float


class Device(Protocol):
    """A device to measure on."""

    device: torch.device

    def describe(self) -> dict[str, Any]: ...  # noqa: D102
    def synchronize(self) -> None: ...  # noqa: D102
    def free_bytes(self) -> int: ...  # noqa: D102
    def device_seconds(self, run: Run, head_start: float) -> float: ...  # noqa: D102
    def work(self, run: Run) -> Work | None: ...  # noqa: D102
    def graph(self, run: Run) -> Run: ...  # noqa: D102


class Cuda:
    """The current CUDA device."""

    MAX_HEAD_START = 0.05  # seconds; a host that needs longer is what limits the step

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda", torch.cuda.current_device())
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        self._cold = torch.ones(max(cache, 2**20), device=self.device)  # float32: four times the bytes
        self._cycles_per_second = 2e9
        self._spin(0.3)  # until an idle card has come up to its clock
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        self._spin(0.01)
        end.record()
        self.synchronize()
        self._cycles_per_second *= 0.01 / (start.elapsed_time(end) * 1e-3)

    def _spin(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * self._cycles_per_second))  # type: ignore[no-untyped-call]

    def describe(self) -> dict[str, Any]:
        """Name, driver, versions and date: what the numbers depend on."""
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "gpu": properties.name,
            "gpu memory GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "L2 MiB": round(properties.L2_cache_size / 2**20, 1),
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def synchronize(self) -> None:
        """Wait until the device has nothing to do."""
        torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        """Memory that tensors can still take."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def device_seconds(self, run: Run, head_start: float) -> float:
        """Seconds on the device of one call whose operands are not in its cache."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._spin(min(1e-4 + 2 * head_start, self.MAX_HEAD_START))
        self._cold.sum()
        start.record()
        run()
        end.record()
        self.synchronize()
        return float(start.elapsed_time(end) * 1e-3)

    def work(self, run: Run) -> Work | None:
        """Kernels, copies and memsets of one call, by the profiler."""
        self.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            self.synchronize()
        events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]  # type: ignore[attr-defined]
        # Labels of regions, such as step()'s, are drawn on the device's time line too.
        events = [e for e in events if not (getattr(e, "is_user_annotation", False) or e.name.startswith("Optimizer."))]
        copies, memsets = (sum(e.name.startswith(kind) for e in events) for kind in ("Memcpy", "Memset"))
        seconds = sum(e.time_range.elapsed_us() for e in events) * 1e-6
        return Work(len(events) - copies - memsets, copies, memsets, seconds)

    def graph(self, run: Run) -> Run:
        """The call captured in a CUDA graph, after three on a side stream to warm up."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


class Host:
    """The CPU in the place of a GPU: every part of the benchmark runs, and its numbers say nothing of a GPU."""

    device = torch.device("cpu")

    def describe(self) -> dict[str, Any]:
        """As much as there is to say without a GPU."""
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        return {"date": date, "gpu": "none, tried out on the CPU", "driver": "-", "cuda": "-"} | {
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def free_bytes(self) -> int:
        """Enough for what is tried out here."""
        return 2**30

    def device_seconds(self, run: Run, head_start: float) -> float:
        """Seconds of the call."""
        start = perf_counter()
        run()
        return perf_counter() - start

    def work(self, run: Run) -> Work | None:
        """Unknown; the call is made all the same."""
        run()
        return None

    def graph(self, run: Run) -> Run:
        """The call itself."""
        return run


DEVICES: dict[str, Callable[[], Device]] = {"cuda": Cuda, "cpu": Host}


def host_and_wall(device: Device, run: Run, calls: int) -> tuple[float, float]:
    """Seconds per call until the host can go on, and until the device is done."""
    device.synchronize()
    start = perf_counter()
    for _ in range(calls):
        run()
    issued = perf_counter()
    device.synchronize()
    return (issued - start) / calls, (perf_counter() - start) / calls


def copy_bandwidth(device: Device, repeats: int = 11) -> float:
    """Bytes read and written per second by the device's own copy, from one large buffer to another."""
    elements = min(2**29, device.free_bytes() // 32)
    source = torch.ones(elements, device=device.device)
    target = torch.empty_like(source)
    seconds = [device.device_seconds(lambda: target.copy_(source), 1e-5) for _ in range(repeats)]
    return 8 * elements / statistics.median(seconds[1:])


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
