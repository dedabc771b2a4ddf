"""Time ``optimizer.step()`` on a GPU: one parameter set, all implementations in turn, a JSON line per result.

    python benchmarks/gpu_steps.py --set resnet50 --dtypes float32 bfloat16 --lines rows.jsonl
    python benchmarks/gpu_steps.py --set gpt2-xl --dtypes bfloat16 --formats masters 8bit --lines rows.jsonl

Implementations share parameters and gradients. What fails is written down as such, and the rest goes on. A step is
    (a) timed on the device, by events, with nothing of it in the cache (``devices.py``);
    (b) timed by the clock until the device is done, and until the host can go on: over calls that follow one another,
        and alone after a real backward into gradients of ``None``, which then lie elsewhere;
    (c) taken apart by the profiler, which counts kernels, copies and memsets.
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fusedopt.benchmark.devices import DEVICES, Device, Run, copy_bandwidth, host_and_wall
from fusedopt.benchmark.implementations import CASES, FORMATS, GPU_CASES, OURS, OptimizerCase
from fusedopt.benchmark.parameter_sets import GPU_SETS, ParameterSet
from fusedopt.benchmark.rivals import rivals
from fusedopt.benchmark.timing import Sample, Spread, turns

COMPILED = "compiled foreach"
FEWEST_REPEATS, MOST_REPEATS = 5, 31
ISSUED_AHEAD = 500e-6  # seconds of host time over which host and wall time are averaged
MEMORY_MARGIN = 1.25  # of what parameters, gradients and states take, for temporaries


@dataclass
class StepRow:
    """One implementation's step on one parameter set. Times in microseconds; ``error`` says why there are none."""

    optimizer: str
    parameter_set: str
    implementation: str
    dtype: str
    tensors: int
    elements: int
    bytes: int
    """Read and written at least, by the rule's declaration; those of ours, for every implementation."""
    copy_gb_per_s: float
    format: str = "plain"
    """What ours stores parameters and states in."""
    device_us: Spread | None = None
    host_us: Spread | None = None
    wall_us: Spread | None = None
    repeats: int = 0
    ratios: dict[str, Spread] = field(default_factory=dict)
    """How many times less device time than each other implementation, within the repeats."""
    host_us_after_backward: Spread | None = None
    wall_us_after_backward: Spread | None = None
    changed_addresses: int | None = None
    """Gradients, of ``tensors``, that a backward put elsewhere: the most in one step."""
    work: dict[str, float] | None = None
    """Kernels, copies and memsets of a step, and ``kernel_seconds``."""
    error: str | None = None

    @property
    def gb_per_s(self) -> float | None:
        """Of ``bytes``, over the device time."""
        return None if self.device_us is None else self.bytes / self.device_us.median * 1e-3

    @property
    def copy_share(self) -> float | None:
        """Of the bandwidth of the device's own copy."""
        return None if self.gb_per_s is None else self.gb_per_s / self.copy_gb_per_s

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"kind": "step", **asdict(self), "gb_per_s": self.gb_per_s, "copy_share": self.copy_share}


def step_row(values: dict[str, Any]) -> StepRow:
    """The row that ``as_dict`` made these values of."""
    kept = {name: values[name] for name in StepRow.__dataclass_fields__}
    for name in ("device_us", "host_us", "wall_us", "host_us_after_backward", "wall_us_after_backward"):
        kept[name] = kept[name] and Spread(**kept[name])
    kept["ratios"] = {name: Spread(**ratio) for name, ratio in kept["ratios"].items()}
    return StepRow(**kept)


class Backward:
    """Gives parameters the gradients they have, by a real backward: that of the sum of their products."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.gradients = [p.grad for p in parameters]

    def __call__(self, optimizer: torch.optim.Optimizer) -> int:
        """Run it, and return how many gradients lie elsewhere than before."""
        before = [p.grad.data_ptr() for p in self.parameters if p.grad is not None]
        optimizer.zero_grad(set_to_none=True)
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            (p * gradient).sum().backward()
        after = [p.grad.data_ptr() for p in self.parameters if p.grad is not None]
        return sum(old != new for old, new in zip(before, after, strict=True))

    def restore(self) -> None:
        """Set the gradients that were there at first."""
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient


def factories(case: OptimizerCase, compiled: bool) -> dict[str, Callable[[Sequence[torch.nn.Parameter]], Any]]:
    """How to make each implementation; ``compiled`` adds torch.compile's, and leaves all but its rivals out."""
    made = case.factories()
    if not compiled:
        return {**made, **rivals(case.name)}
    return {name: made[name] for name in (OURS, "foreach", "fused") if name in made} | {COMPILED: made["foreach"]}


def measure(
    device: Device,
    case: OptimizerCase,
    parameter_set: ParameterSet,
    parameters: Sequence[torch.nn.Parameter],
    copy_bytes_per_second: float,
    *,
    seconds: float,
    compiled: bool = False,
) -> Iterator[StepRow]:
    """Time every implementation of ``case`` on ``parameters``, whose gradients stay as they are."""
    dtype = parameters[0].dtype
    numbers = (len(parameter_set.shapes), parameter_set.elements)
    step_bytes = case.accesses * parameter_set.elements * dtype.itemsize
    runs: dict[str, Run] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    rows: dict[str, StepRow] = {}
    hosts: dict[str, float] = {}

    def fail(name: str, error: Exception) -> None:
        rows[name].error = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        for known in (runs, optimizers, hosts):
            known.pop(name, None)  # type: ignore[attr-defined]

    for name, make in factories(case, compiled).items():
        rows[name] = StepRow(
            case.name,
            parameter_set.name,
            name,
            str(dtype).removeprefix("torch."),
            *numbers,
            step_bytes,
            copy_bytes_per_second * 1e-9,
            case.format,
        )
        try:
            optimizers[name] = make(parameters)
            runs[name] = torch.compile(optimizers[name].step) if name == COMPILED else optimizers[name].step
            for _ in range(3):
                hosts[name] = host_and_wall(device, runs[name], 1)[0]
        except Exception as error:
            fail(name, error)

    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for name in turns(list(runs), most=MOST_REPEATS, fewest=FEWEST_REPEATS, seconds=seconds):
        if name not in runs:  # it has failed
            continue
        try:
            calls = max(2, min(20, int(ISSUED_AHEAD / hosts[name])))
            host, wall = host_and_wall(device, runs[name], calls)
            samples[name].append((device.device_seconds(runs[name], host), host, wall))
        except Exception as error:
            fail(name, error)

    after_backward(device, {n: o for n, o in optimizers.items() if n != "for-loop"}, runs, parameters, rows, fail)
    for name in [name for name in runs if name != "for-loop"]:
        try:
            work = device.work(runs[name])
            rows[name].work = work and asdict(work)
        except Exception as error:  # The profiler may not be allowed; the times stand.
            print(f"{case.name} {name}: no launches counted: {error}", flush=True)

    if OURS in optimizers:
        step_bytes = optimizers[OURS].bytes_per_step()  # type: ignore[attr-defined]
    taken = {name: Sample(1, [sample[0] for sample in samples[name]]) for name in runs}
    for name, row in rows.items():
        row.bytes = step_bytes
        if name in runs:
            row.repeats = len(samples[name])
            times = [Spread.of([seconds * 1e6 for seconds in column]) for column in zip(*samples[name], strict=True)]
            row.device_us, row.host_us, row.wall_us = times
            row.ratios = {other: taken[name].relative_to(taken[other]) for other in taken if other != name}
        yield row


def after_backward(
    device: Device,
    optimizers: dict[str, torch.optim.Optimizer],
    runs: dict[str, Run],
    parameters: Sequence[torch.nn.Parameter],
    rows: dict[str, StepRow],
    fail: Callable[[str, Exception], None],
) -> None:
    """Fill in the times of a step that follows a real backward."""
    backward = Backward(parameters)
    try:
        for name, optimizer in optimizers.items():
            try:
                taken = []
                for _ in range(FEWEST_REPEATS + 2):
                    changed = backward(optimizer)
                    taken.append((*host_and_wall(device, runs[name], 1), changed))
            except Exception as error:
                fail(name, error)
                continue
            hosts, walls, changes = zip(*taken[2:], strict=True)
            rows[name].host_us_after_backward = Spread.of([1e6 * seconds for seconds in hosts])
            rows[name].wall_us_after_backward = Spread.of([1e6 * seconds for seconds in walls])
            rows[name].changed_addresses = max(changes)
    finally:
        backward.restore()


def needed_bytes(case: OptimizerCase, parameter_set: ParameterSet, dtype: torch.dtype, implementations: int) -> int:
    """Memory of parameters, two sets of gradients, and two states for each implementation."""
    arrays = 3 + 2 * implementations
    if case.format != "plain":
        arrays += 3  # at most: two states in float32 and the rest of the masters, with parameters of bfloat16
    return int(parameter_set.elements * dtype.itemsize * arrays * MEMORY_MARGIN)


def run(device: Device, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything asked for, as lines of the result."""
    bandwidth = copy_bandwidth(device)
    parameter_set = GPU_SETS[options.set].tiny() if options.tiny else GPU_SETS[options.set]
    yield {"kind": "copy", "set": options.set, "gb_per_s": bandwidth * 1e-9}
    for dtype in (getattr(torch, name) for name in options.dtypes):
        parameters = None
        for name, stored in product(options.optimizers, options.formats):
            case = CASES[name].stored(stored)
            needed, free = needed_bytes(case, parameter_set, dtype, len(factories(case, options.compiled))), 0
            if parameters is None and needed <= (free := device.free_bytes()):
                parameters = parameter_set.parameters(dtype, device.device)
            if parameters is None:
                reason = f"needs {needed / 2**30:.0f} GiB of memory, of which {free / 2**30:.0f} are free"
                yield {"kind": "failure", "what": f"{name} {parameter_set.name} {dtype}", "error": reason}
                continue
            for row in measure(
                device, case, parameter_set, parameters, bandwidth, seconds=options.seconds, compiled=options.compiled
            ):
                yield row.as_dict()
            gc.collect()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=GPU_SETS, required=True)
    parser.add_argument("--optimizers", nargs="+", choices=CASES, default=list(GPU_CASES), metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["plain"], metavar="NAME")
    parser.add_argument("--compiled", action="store_true", help="torch.compile's foreach against ours, foreach, fused")
    parser.add_argument("--seconds", type=float, default=0.6, help="for the repeats of a case")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few elements of each set: a rehearsal of a second")
    parser.add_argument("--lines", type=Path, required=True, metavar="FILE", help="append a JSON line per result")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.seconds = 0
    gc.disable()  # run() collects between the cases
    append(options.lines, run(DEVICES[options.device](), options))


def append(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    """Write each line as it comes."""
    with path.open("a") as file:
        for line in lines:
            print(summary(line), flush=True)
            file.write(json.dumps(line) + "\n")
            file.flush()


def summary(line: dict[str, Any]) -> str:
    """A line for the log."""
    shown = {name: value for name, value in line.items() if value is not None and not isinstance(value, dict)}
    medians = {name: value["median"] for name, value in line.items() if isinstance(value, dict) and "median" in value}
    return ", ".join(
        f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in (shown | medians).items()
    )


if __name__ == "__main__":
    main()
