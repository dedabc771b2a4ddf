"""Time the host's part of ``optimizer.step()`` on a GPU, without one: a JSON line per row, and a table.

    make bench-host                                     # builds the executor's extension, and runs all of this there
    python benchmarks/host.py --sets bert-large --classes AdamW --modes eager scaler+clip

It runs in a build whose kernels are executed on the CPU, with the kernels left out: what remains is what the host does
for a GPU, but for the driver's part of a launch (2 to 5 µs). Ours is taken apart:
    walk: ``Plan.refresh``, which looks at every parameter, gradient and state;
    fixed: ``Plan.run`` of a single tensor: folding hyper-parameters, arguments, the launch;
    tensors: the rest of ``Plan.run``: comparing the table, version counters, step counts;
    Python: the rest of ``step()``.
Beside it, in the same run and in turns, torch's classes on CPU tensors of one element each: their Python and dispatch
are those of a GPU step, but for the launches.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from fusedopt import _C
from fusedopt.benchmark.implementations import CASES, OURS
from fusedopt.benchmark.parameter_sets import GPU_SETS
from fusedopt.benchmark.timing import OtherWork, Run, Spread, host_clock, interleave

SETS = {name: len(GPU_SETS[name].shapes) for name in ("lenet", "resnet50", "bert-large")} | {"5000": 5000}
CLASSES = ("AdamW", "SGD-Nesterov", "RMSprop", "LAMB")
MODES = ("eager", "clip", "scaler", "scaler+clip", "capturable")
BUSY = 0.2  # cores; more than that, and the numbers say little


@dataclass
class HostRow:
    """The host's time of a step, in microseconds."""

    optimizer: str
    tensors: int
    mode: str
    step: Spread
    walk: float
    fixed: float
    others: dict[str, Spread] = field(default_factory=dict)
    """How many times longer torch's forms take."""
    run: float = 0.0

    @property
    def python(self) -> float:
        """What ``step()`` takes beside the plan."""
        return self.step.median - self.walk - self.run

    def as_dict(self) -> dict[str, object]:
        """All of it, for JSON."""
        return {"kind": "host", **asdict(self), "python": self.python}

    def cells(self) -> list[str]:
        """A line of the table."""
        parts = [self.walk, self.fixed, self.run - self.fixed, self.python]
        others = [f"{name} {ratio.median:.0f}x" for name, ratio in self.others.items()]
        spread = f"{self.step.median:.1f} ({self.step.low:.1f} .. {self.step.high:.1f})"
        return [self.optimizer, f"{self.tensors:,}", self.mode, spread, *(f"{p:.1f}" for p in parts), ", ".join(others)]


HEADER = ("optimizer", "tensors", "mode", "step µs", "walk", "fixed", "tensors", "Python", "torch's, of the step")


def parameters(tensors: int) -> list[torch.nn.Parameter]:
    """So many of one element each, with gradients."""
    made = [torch.nn.Parameter(torch.full((1,), 0.5)) for _ in range(tensors)]
    for p in made:
        p.grad = torch.full((1,), 1e-3)
    return made


def ours(name: str, tensors: int, mode: str) -> torch.optim.Optimizer:
    """Our optimizer in a mode, after three steps."""
    made = CASES[name].factories()[OURS](parameters(tensors))
    made.defaults["max_grad_norm"] = 1e4 if "clip" in mode else None
    for group in made.param_groups:
        group["capturable"] = mode == "capturable"
    if "scaler" in mode:
        made.grad_scale, made.found_inf = torch.ones(()), torch.zeros(())  # type: ignore[attr-defined]
    for _ in range(3):
        made.step()
    return made


def parts(optimizer: torch.optim.Optimizer) -> tuple[Run, Run]:
    """The walk of a step and, after a walk, the rest of the plan's work, as calls."""
    calls: dict[str, tuple[object, ...]] = {}

    class Recorder:
        """Stands before the plan for one step, and keeps what it is called with."""

        def __init__(self, plan: _C.Plan) -> None:
            self._plan = plan

        def __getattr__(self, name: str) -> object:
            value = getattr(self._plan, name)
            if not callable(value):
                return value

            def call(*arguments: object) -> object:
                calls[name] = arguments
                return value(*arguments)

            return call

    plan = optimizer._plan  # type: ignore[attr-defined]
    optimizer._plan = Recorder(plan)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer._plan = plan  # type: ignore[attr-defined]
    # A step that needs nothing else is one call, of which the last argument asks for the update too.
    refresh, norm, run = calls["refresh"][:6], calls.get("norm"), calls.get("run", (1.0,))

    def walk() -> None:
        plan.refresh(*refresh)

    def walk_and_run() -> None:
        plan.refresh(*refresh)
        if norm is not None:
            plan.norm(*norm)
        plan.run(*run)

    return walk, walk_and_run


def measure(name: str, tensors: int, mode: str, seconds: float) -> HostRow:
    """Time ours, its parts, and torch's forms in turns."""
    optimizer, single = ours(name, tensors, mode), ours(name, 1, mode)
    walk, walk_and_run = parts(optimizer)
    walk_one, walk_and_run_one = parts(single)
    runs: dict[str, Run] = {
        OURS: optimizer.step,
        "walk": walk,
        "walk and run": walk_and_run,
        "walk one": walk_one,
        "walk and run one": walk_and_run_one,
    }
    if mode == "eager":
        for form, make in CASES[name].factories().items():
            if form != OURS:
                runs[form] = make(parameters(tensors)).step
    samples = interleave(runs, host_clock, repeats=21, seconds=seconds)
    us = {run: Spread.of([1e6 * s for s in samples[run].seconds]) for run in runs}
    others = {
        form: samples[OURS].relative_to(samples[form]) for form in ("fused", "foreach", "for-loop") if form in runs
    }
    row = HostRow(
        name, tensors, mode, us[OURS], us["walk"].median, us["walk and run one"].median - us["walk one"].median, others
    )
    row.run = us["walk and run"].median - us["walk"].median
    return row


def rows(options: argparse.Namespace) -> Iterator[HostRow]:
    """Every class eagerly, and AdamW in every mode."""
    for set_name in options.sets:
        for name in options.classes:
            for mode in options.modes if name == options.classes[0] else options.modes[:1]:
                gc.collect()
                yield measure(name, SETS[set_name], mode, options.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--classes", nargs="+", choices=CASES, default=list(CLASSES), metavar="NAME")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="append a JSON line per row")
    options = parser.parse_args(arguments)
    if _C.GPU != "cpu":
        raise SystemExit("benchmarks/host.py runs in a build whose GPU is the CPU: make bench-host")
    torch.set_num_threads(1)
    other = OtherWork()
    skip: Callable[[bool], None] = _C.executor.skip
    skip(True)
    try:
        print(" | ".join(HEADER))
        for row in rows(options):
            print(" | ".join(row.cells()), flush=True)
            if options.lines:
                with options.lines.open("a") as file:
                    file.write(json.dumps(row.as_dict()) + "\n")
    finally:
        skip(False)
    if (busy := other.cores()) > BUSY:
        print(f"Other processes kept {busy:.1f} cores busy: these numbers say little.", file=sys.stderr)


if __name__ == "__main__":
    main()
