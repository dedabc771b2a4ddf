"""The measurements of a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fusedopt.benchmark.candidates import Candidates
from fusedopt.benchmark.devices import Device, copy_bandwidth
from fusedopt.benchmark.implementations import CASES, NATIVE, OURS
from fusedopt.benchmark.machine import machine, machine_line
from fusedopt.benchmark.measured import Measured
from fusedopt.benchmark.results import Comparison
from fusedopt.benchmark.subjects import Subject
from fusedopt.benchmark.timing import Sample, Spread, clock_for, interleave
from fusedopt.benchmark.training import time_training

_REPEATS = 21
QUIET = 0.1  # cores that others may keep busy


class Measurements:
    """The measurements of one comparison, one after the other."""

    seconds = 0.0  # for the steps of an optimizer, and as many for training with it

    def __init__(self, subject: Subject, parameters: list[Parameter], meter: Device, dtype: torch.dtype | None) -> None:
        self._subject, self._parameters, self._meter, self._dtype = subject, parameters, meter, dtype
        self._copying = copy_bandwidth(meter)
        self.rows: list[Measured] = []
        self.left_out: list[str] = []
        self.busy: dict[str, float] = {}

    def steps(self, candidates: Candidates) -> list[Measured]:
        """A row for each implementation that works here."""
        if candidates.still:
            for p in self._parameters:
                torch.zero_(cast(Tensor, p.grad))
        optimizers: dict[str, Optimizer] = {}
        for name, make in candidates.factories.items():
            try:
                optimizer = make(self._parameters)
                optimizer.step()
                optimizers[name] = optimizer
            except Exception as error:  # of a package that needs a GPU, a compiler, another dtype ...
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.left_out.append(f"{candidates.name} in {name}: {reason[:200]}")
        if not optimizers:
            return []
        runs = {name: optimizer.step for name, optimizer in optimizers.items()}
        samples = interleave(runs, clock_for(self._meter.device), _REPEATS, self.seconds)
        step_bytes = _step_bytes(candidates.name, optimizers, self._parameters)
        return [self._row(candidates.name, name, optimizers[name], samples, step_bytes) for name in optimizers]

    def _row(
        self, of: str, name: str, optimizer: Optimizer, samples: Mapping[str, Sample], step_bytes: int | None
    ) -> Measured:
        sample, spread = samples[name], Spread.of(samples[name].seconds)
        natives = [samples[native] for native in NATIVE if native in samples]
        fastest = min(natives, key=lambda native: Spread.of(native.seconds).median, default=None)
        return Measured(
            optimizer=of,
            implementation=name,
            seconds=spread,
            repeats=len(sample.seconds),
            calls=sample.calls,
            step_bytes=step_bytes,
            copy_share=None if step_bytes is None else step_bytes / spread.median / self._copying,
            state_bytes=_state_bytes(optimizer),
            launches=_launches(optimizer, self._meter),
            ratio=None if fastest is None else sample.relative_to(fastest),
        )

    def training(
        self, candidates: Candidates, rows: list[Measured], batch: int, inputs: Tensor | None
    ) -> list[Measured]:
        """The rows, with the times of whole training steps."""
        place = self._meter.device
        factories = {row.implementation: candidates.factories[row.implementation] for row in rows}
        with torch.random.fork_rng([place] if place.type == "cuda" else []):  # a dropout in the model draws
            taken = time_training(
                self._subject, factories, batch, inputs, self._dtype, place, self.seconds, _first(rows)
            )
        if missing := [name for name in factories if name not in taken]:
            self.left_out.append(f"training with {candidates.name} in {', '.join(missing)}: not in the time given")
        return [dataclasses.replace(row, training=taken.get(row.implementation)) for row in rows]

    def comparison(self, batch: int | None) -> Comparison:
        """All of it."""
        place = self._meter.device
        return Comparison(
            subject=self._subject.name,
            tensors=len(self._parameters),
            elements=self._subject.elements,
            dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in self._parameters})),
            device=machine_line() if place.type == "cpu" else torch.cuda.get_device_name(place),
            machine=machine(),
            copy_bytes_per_second=self._copying,
            rows=tuple(self.rows),
            left_out=tuple(self.left_out),
            busy=self.busy,
            batch=batch,
        )


def _first(rows: Sequence[Measured]) -> list[str]:
    """Ours and the fastest of torch's, or the first that there is."""
    natives = sorted((row for row in rows if row.implementation in NATIVE), key=lambda row: row.seconds.median)
    chosen = [row.implementation for row in rows if row.implementation == OURS]
    return [*chosen, *(row.implementation for row in natives[:1])] or [rows[0].implementation]


def _step_bytes(name: str, optimizers: dict[str, Optimizer], parameters: Sequence[Parameter]) -> int | None:
    """By the declaration of our rule, or by the case's where ours is not among the optimizers."""
    if OURS in optimizers:
        return int(optimizers[OURS].bytes_per_step()) or None  # type: ignore[attr-defined]
    return CASES[name].accesses * sum(p.nbytes for p in parameters) if name in CASES else None


def _state_bytes(optimizer: Optimizer) -> int:
    storages: dict[int, int] = {}
    values: list[Any] = [value for state in optimizer.state.values() for value in state.values()]
    while values:
        value = values.pop()
        if hasattr(value, "__tensor_flatten__"):  # a subclass that is made of several tensors
            values += [getattr(value, inner) for inner in value.__tensor_flatten__()[0]]
        elif isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(storages.values())


def _launches(optimizer: Optimizer, meter: Device) -> int | None:
    try:
        work = meter.work(optimizer.step)
    except RuntimeError:  # the profiler may not be allowed
        return None
    return None if work is None else work.kernels
