"""Timing of `optimizer.step()`: candidates take turns, the median is reported."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

OptimizerFactory = Callable[[list[Parameter]], Optimizer]


@dataclass(frozen=True)
class Timing:
    """Wall time of a call in microseconds: the median, and the quartiles as its spread."""

    median: float
    quartiles: tuple[float, float]


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int = 200, warmup: int = 20) -> dict[str, Timing]:
    """Times calls in turns, so that a change of the machine's speed meets all of them alike.

    Each round runs every call once, starting with the next one each time, so that no call always follows the same
    neighbour's leftovers in the cache.

    Args:
        calls: what to time, by name. For the CPU: the calls must have finished their work when they return.
        rounds: number of timed runs of each call, at least 2.
        warmup: number of untimed rounds before.

    Raises:
        ValueError: fewer than 2 rounds.
    """
    if rounds < 2:
        raise ValueError(f"a spread needs at least 2 rounds, not {rounds}")
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            call = calls[name]
            start = perf_counter()
            call()
            elapsed = perf_counter() - start
            if turn >= warmup:
                times[name].append(elapsed * 1e6)
    return {name: _summary(values) for name, values in times.items()}


def _summary(microseconds: list[float]) -> Timing:
    low, median, high = statistics.quantiles(microseconds, n=4)
    return Timing(median, (low, high))


def time_steps(
    model: nn.Module, factories: Mapping[str, OptimizerFactory], *, rounds: int = 200, warmup: int = 20
) -> dict[str, Timing]:
    """Times `step()` of several optimizers, each on its own copy of the model's parameters and gradients.

    Args:
        model: on the CPU, with gradients from a backward pass; it is not changed.
        factories: by name, each makes an optimizer over the parameters it is given.
        rounds, warmup: as in `interleaved`.

    Raises:
        ValueError: a parameter has no gradient.
    """
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    if missing:
        raise ValueError(f"no gradient in {', '.join(missing)}; run a backward pass first")
    return interleaved(
        {name: make(_copies(model)).step for name, make in factories.items()}, rounds=rounds, warmup=warmup
    )


def _copies(model: nn.Module) -> list[Parameter]:
    twins = []
    for parameter in model.parameters():
        twin = Parameter(parameter.detach().clone())
        twin.grad = parameter.grad.clone() if parameter.grad is not None else None
        twins.append(twin)
    return twins


def machine() -> str:
    """Returns the processor, its number of threads in use, and the PyTorch version, in one line."""
    return f"{_processor()}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
