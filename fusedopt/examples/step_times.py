"""How long `optimizer.step()` takes: fusedopt beside what PyTorch offers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fusedopt.training.optimizers import OPTIMIZERS, make_optimizer
from fusedopt.training.timing import OptimizerFactory, Timing, time_steps

OURS = "fusedopt"
NATIVE = ("for-loop", "foreach", "fused")

# The learning rate is tiny, so that thousands of steps leave the parameters where they were. Nesterov has a weight
# decay because without one PyTorch's foreach version adds to the gradients in place, which here are used again.
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "rmsprop": {},
    "lamb": {"weight_decay": 0.01, "max_grad_norm": 1.0},
}
LABELS = {"adamw": "AdamW", "sgd": "SGD (Nesterov)", "rmsprop": "RMSprop", "lamb": "LAMB"}

Table = dict[str, dict[str, Timing]]
"""The timing of each implementation that exists, by name of the optimizer."""


def measure(model: nn.Module, rounds: int = 300) -> Table:
    """Times one step of each optimizer in each implementation.

    Args:
        model: on the CPU, with gradients; it is not changed.
        rounds: timed steps of each.
    """
    return {name: time_steps(model, _implementations(name, options), rounds=rounds) for name, options in CASES.items()}


def _implementations(name: str, options: Mapping[str, Any]) -> dict[str, OptimizerFactory]:
    options = {"lr": 1e-6, **options}
    factories: dict[str, OptimizerFactory] = {OURS: partial(make_optimizer, name, **options)}
    if OPTIMIZERS[name].in_torch:
        native = partial(make_optimizer, f"torch.{name}", **options)
        factories["for-loop"] = partial(native, foreach=False)
        factories["foreach"] = partial(native, foreach=True)
        if "fused" in inspect.signature(getattr(torch.optim, OPTIMIZERS[name].class_name)).parameters:
            factories["fused"] = partial(native, fused=True)
    elif (reference := _foreach_lamb()) is not None:
        factories["for-loop"] = partial(reference, bucket_elements=0, **options)
        factories["foreach"] = partial(reference, **options)
    return factories


def _foreach_lamb() -> Any:
    """PyTorch has no LAMB; the project's benchmarks write one in its operations, which is not installed with us."""
    try:
        return importlib.import_module("benchmarks.lamb_foreach").LambForeach
    except ImportError:
        return None


def speedup(timings: Mapping[str, Timing]) -> float | None:
    """Returns how many times longer the fastest native implementation takes than ours, None where there is none."""
    native = [timing.median for name, timing in timings.items() if name != OURS]
    return min(native) / timings[OURS].median if native else None


def format_table(table: Table) -> str:
    """Returns the table of median microseconds as text, one row per optimizer."""
    columns = (OURS, *NATIVE)
    lines = [f"{'µs per step':<16}" + "".join(f"{column:>10}" for column in columns) + "   fastest native : fusedopt"]
    for name, timings in table.items():
        cells = [f"{timings[c].median:10.1f}" if c in timings else f"{'-':>10}" for c in columns]
        ratio = speedup(timings)
        end = f"{ratio:.2f}x" if ratio is not None else "- (PyTorch has none; see benchmarks/ in the sources)"
        lines.append(f"{LABELS[name]:<16}" + "".join(cells) + f"   {end}")
    if "for-loop" in table.get("lamb", {}):
        lines.append("PyTorch has no LAMB: in its columns stands benchmarks/lamb_foreach.py, in PyTorch operations.")
    return "\n".join(lines)
