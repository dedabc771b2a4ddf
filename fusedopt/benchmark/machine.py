"""What numbers depend on: processor, threads, versions."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine(threads: int | None = None, with_ours: bool = True) -> dict[str, Any]:
    """What the numbers depend on, by name."""
    description: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "torch ISA": torch.backends.cpu.get_cpu_capability(),
    }
    if with_ours:
        # Here, so that the GPU benchmark can be begun before the package is built.
        from fusedopt.installation import info

        description["fusedopt"] = info()
    return description


def machine_line() -> str:
    """The processor, its number of threads in use, and the PyTorch version, in one line."""
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}, PyTorch {torch.__version__}"


def print_machine(description: dict[str, Any]) -> None:
    """Print the machine, one fact per line."""
    for key, value in description.items():
        shown = ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else value
        print(f"# {key}: {shown}")
    print()


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
