"""What a step costs in each implementation, on parameters that somebody has: `fusedopt.compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from fusedopt.benchmark.candidates import Candidates, named, of_optimizer
from fusedopt.benchmark.devices import DEVICES, copy_bandwidth
from fusedopt.benchmark.implementations import CASES, DEFAULT_CASES, NATIVE, OURS
from fusedopt.benchmark.machine import machine, machine_line
from fusedopt.benchmark.parameter_sets import Shape
from fusedopt.benchmark.subjects import Subject, find_subject, of_model, of_shapes
from fusedopt.benchmark.timing import OtherWork, Sample, Spread, clock_for, interleave
from fusedopt.benchmark.training import Training, time_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REPEATS = 21


@dataclass(frozen=True)
class Measured:
    """One implementation of one optimizer.

    Attributes:
        optimizer, implementation: names.
        seconds: of a step, over the repeats.
        repeats, calls: how often it was timed, and how many steps each time.
        step_bytes: what the rule has to read and write in a step at least; None where nothing declares it.
        copy_share: the bandwidth that `step_bytes` makes in the median step, of that of a copy. Above 1 where the
            operands stay in a cache.
        state_bytes: of the optimizer's state.
        launches: kernels in a step, None where there is no GPU or its profiler may not be used.
        ratio: how many times faster than the fastest of torch's, from the ratios within the repeats; None where there
            is none of torch's.
        training: of a whole training step, where one was asked for.
    """

    optimizer: str
    implementation: str
    seconds: Spread
    repeats: int
    calls: int
    step_bytes: int | None
    copy_share: float | None
    state_bytes: int
    launches: int | None
    ratio: Spread | None
    training: Training | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured. Printed, it is a table in words.

    Attributes:
        subject: what it was measured on.
        tensors, elements, dtypes, device: the parameters.
        machine: what the numbers depend on.
        copy_bytes_per_second: of a copy of large buffers, counted as read and written.
        rows: a row for each implementation.
        left_out: what could not be timed, with the reason.
        busy: for each optimizer during which other processes kept more than a tenth of a core busy, how many cores.
        batch: inputs of a whole training step, None without.
    """

    subject: str
    tensors: int
    elements: int
    dtypes: tuple[str, ...]
    device: str
    machine: dict[str, Any]
    copy_bytes_per_second: float
    rows: tuple[Measured, ...]
    left_out: tuple[str, ...]
    busy: dict[str, float]
    batch: int | None = None

    def __str__(self) -> str:
        from fusedopt.benchmark.words import table

        return table(self)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return dataclasses.asdict(self)

    def plot(self, path: Path | str) -> Figure:
        """Draws the table as bars into a file; needs matplotlib."""
        from fusedopt.benchmark.picture import plot_comparison

        return plot_comparison(self, Path(path))


def compare(
    subject: Optimizer | nn.Module | Sequence[Shape] | str,
    optimizers: Sequence[str] | None = None,
    *,
    implementations: Sequence[str] | None = None,
    batch: int | None = None,
    inputs: Tensor | None = None,
    input_shape: Shape | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seconds: float = 120.0,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Times `step()` of optimizers in ours, torch's and other installed packages' implementations, in turns.

    All work on copies of the parameters, with drawn gradients and a tiny learning rate: nothing that is given changes.

    Args:
        subject: an optimizer at hand, whose class and options are taken; a model; shapes of parameters; or a name that
            :func:`fusedopt.benchmark.subjects.find_subject` knows.
        optimizers: names such as ``AdamW`` and ``SGD-Nesterov``, by default four; not with an optimizer at hand.
        implementations: the names of those to be timed; all that there are by default.
        batch: times whole training steps, too, on drawn inputs, this many at a time; needs a model.
        inputs: what the model is given then, instead of drawn inputs.
        input_shape: of one drawn input, where the model's source does not tell.
        dtype: of the parameters; their own by default.
        device: where to measure; that of the parameters by default.
        seconds: for everything, about. Large models may take longer: each step is taken at least eight times.
        say: is told what comes next.

    Raises:
        ValueError: something of this is not there, or cannot be measured.
        TypeError: an optimizer that is neither torch's nor ours.
    """
    found, candidates = _what(subject, optimizers, input_shape)
    if batch is not None and found.model is None:
        raise ValueError(f"a whole training step needs a model, and {found.name} is none")
    place = torch.device(device) if device is not None else found.parameters[0].device
    parameters = found.drawn(dtype, place)
    say("how fast a copy is")
    comparison = Comparison(
        subject=found.name,
        tensors=len(parameters),
        elements=found.elements,
        dtypes=tuple(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
        device=machine_line() if place.type == "cpu" else torch.cuda.get_device_name(place),
        machine=machine(),
        copy_bytes_per_second=_copy_bandwidth(place),
        rows=(),
        left_out=(),
        busy={},
        batch=batch,
    )
    share = seconds / len(candidates) / (1 if batch is None else 2)
    rows: list[Measured] = []
    left_out: list[str] = []
    for each in (candidate.only(implementations) for candidate in candidates):
        say(f"steps of {each.name}")
        others = OtherWork()
        measured = _measure(each, parameters, place, share, comparison.copy_bytes_per_second, left_out)
        if batch is not None and measured:
            say(f"training with {each.name}")
            working = {row.implementation: each.factories[row.implementation] for row in measured}
            taken = time_training(found, working, batch, inputs, dtype, place, share)
            measured = [dataclasses.replace(row, training=taken[row.implementation]) for row in measured]
        rows += measured
        if (cores := others.cores()) > 0.1:
            comparison.busy[each.name] = cores
    return dataclasses.replace(comparison, rows=tuple(rows), left_out=tuple(left_out))


def _what(subject: Any, optimizers: Sequence[str] | None, shape: Shape | None) -> tuple[Subject, list[Candidates]]:
    if isinstance(subject, Optimizer):
        if optimizers is not None:
            raise ValueError("an optimizer at hand is compared with itself; give a model to compare others on")
        at_hand, candidates = of_optimizer(subject)
        return at_hand, [candidates]
    chosen = [named(name) for name in optimizers or DEFAULT_CASES]
    if isinstance(subject, str):
        found = find_subject(subject)
    elif isinstance(subject, nn.Module):
        found = of_model(subject)
    else:
        found = of_shapes([tuple(each) for each in subject])
    return dataclasses.replace(found, input_shape=shape or found.input_shape), chosen


def _copy_bandwidth(place: torch.device) -> float:
    if place.type not in DEVICES:
        raise ValueError(f"steps are timed on {' and '.join(DEVICES)}, not on {place.type}")
    return copy_bandwidth(DEVICES[place.type]())


def _measure(
    candidates: Candidates,
    parameters: Sequence[Parameter],
    place: torch.device,
    seconds: float,
    copying: float,
    left_out: list[str],
) -> list[Measured]:
    """A row for each implementation that works here."""
    if candidates.still:
        for p in parameters:
            torch.zero_(p.grad) if p.grad is not None else None
    optimizers: dict[str, Optimizer] = {}
    for name, make in candidates.factories.items():
        try:
            optimizers[name] = make(parameters)
            optimizers[name].step()
        except Exception as error:  # of a package that needs a GPU, a compiler, another dtype ...
            optimizers.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            left_out.append(f"{candidates.name} in {name}: {reason[:200]}")
    runs = {name: optimizer.step for name, optimizer in optimizers.items()}
    if not runs:
        return []
    samples = interleave(runs, clock_for(place), _REPEATS, seconds)
    natives = {name: samples[name] for name in NATIVE if name in samples}
    fastest = min(natives.values(), key=lambda sample: Spread.of(sample.seconds).median, default=None)
    step_bytes = _step_bytes(candidates.name, optimizers, parameters)
    return [
        _row(candidates.name, name, optimizer, samples[name], fastest, step_bytes, copying, place)
        for name, optimizer in optimizers.items()
    ]


def _row(
    of: str,
    name: str,
    optimizer: Optimizer,
    sample: Sample,
    fastest: Sample | None,
    step_bytes: int | None,
    copying: float,
    place: torch.device,
) -> Measured:
    spread = Spread.of(sample.seconds)
    return Measured(
        optimizer=of,
        implementation=name,
        seconds=spread,
        repeats=len(sample.seconds),
        calls=sample.calls,
        step_bytes=step_bytes,
        copy_share=None if step_bytes is None else step_bytes / spread.median / copying,
        state_bytes=_state_bytes(optimizer),
        launches=_launches(optimizer, place),
        ratio=None if fastest is None else sample.relative_to(fastest),
    )


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


def _launches(optimizer: Optimizer, place: torch.device) -> int | None:
    if place.type != "cuda":
        return None
    try:
        work = DEVICES[place.type]().work(optimizer.step)
    except RuntimeError:  # the profiler may not be allowed
        return None
    return None if work is None else work.kernels
