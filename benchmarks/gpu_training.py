"""Time whole training steps on a GPU, eager and replayed from a CUDA graph: a JSON line per result.

    python benchmarks/gpu_training.py --model lenet --lines rows.jsonl

Every implementation trains a copy of the model of its own, on the same batch; they take turns within every repeat.
"""

import argparse
import copy
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from devices import DEVICES, Device, Run, host_and_wall
from gpu_steps import FEWEST_REPEATS, MOST_REPEATS, append
from implementations import CASES
from timing import Sample, Spread
from torch import nn
from torch.nn import functional as F

CALLS = 10  # steps between two looks at the clock
MODES = ("eager", "graph")


@dataclass
class TrainingRow:
    """A whole training step with one implementation. ``error`` says why there is no time."""

    model: str
    optimizer: str
    implementation: str
    mode: str
    batch_size: int
    us: Spread | None = None
    host_us: Spread | None = None
    repeats: int = 0
    ratios: dict[str, Spread] = field(default_factory=dict)
    """How many times less time than each other implementation, within the repeats."""
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"kind": "training", **asdict(self)}


def training_row(values: dict[str, Any]) -> TrainingRow:
    """The row that ``as_dict`` made these values of."""
    kept = {name: values[name] for name in TrainingRow.__dataclass_fields__}
    for name in ("us", "host_us"):
        kept[name] = kept[name] and Spread(**kept[name])
    kept["ratios"] = {name: Spread(**ratio) for name, ratio in kept["ratios"].items()}
    return TrainingRow(**kept)


@dataclass(frozen=True)
class Task:
    """A model with the shape of its inputs."""

    build: Callable[[], nn.Module]
    batch_size: int
    image: tuple[int, int, int]
    classes: int


def _lenet() -> nn.Module:
    from fusedopt.models import LeNet

    return LeNet(1, 10)


def _resnet50() -> nn.Module:
    try:
        from torchvision.models import resnet50
    except ImportError as error:
        raise SystemExit("--model resnet50 needs torchvision") from error
    model: nn.Module = resnet50(weights=None)
    return model


TASKS = {
    "lenet": Task(_lenet, 64, (1, 28, 28), 10),
    "resnet50": Task(_resnet50, 32, (3, 224, 224), 1000),
}


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> Run:
    """One step of training, as a call."""

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def measure(device: Device, name: str, optimizer: str, *, mode: str, seconds: float) -> Iterator[TrainingRow]:
    """Time every implementation but the for-loop."""
    task = TASKS[name]
    torch.manual_seed(0)
    model = task.build().to(device.device)
    images = torch.randn(task.batch_size, *task.image, device=device.device)
    labels = torch.randint(task.classes, (task.batch_size,), device=device.device)
    rows: dict[str, TrainingRow] = {}
    runs: dict[str, Run] = {}

    def fail(implementation: str, error: Exception) -> None:
        rows[implementation].error = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        runs.pop(implementation, None)

    for implementation, make in CASES[optimizer].factories(capturable=mode == "graph").items():
        if implementation == "for-loop":
            continue
        rows[implementation] = TrainingRow(name, optimizer, implementation, mode, task.batch_size)
        try:
            own = copy.deepcopy(model)
            run = training_step(own, make(list(own.parameters())), images, labels)
            runs[implementation] = device.graph(run) if mode == "graph" else run
            host_and_wall(device, runs[implementation], 3)
        except Exception as error:
            fail(implementation, error)

    taken: dict[str, list[tuple[float, float]]] = {implementation: [] for implementation in runs}
    order = list(runs)
    start, repeats = time.perf_counter(), 0
    while repeats < FEWEST_REPEATS or (repeats < MOST_REPEATS and time.perf_counter() - start < seconds):
        random.Random(repeats).shuffle(order)
        for implementation in [i for i in order if i in runs]:
            try:
                taken[implementation].append(host_and_wall(device, runs[implementation], CALLS))
            except Exception as error:
                fail(implementation, error)
        repeats += 1

    walls = {implementation: Sample(CALLS, [wall for _, wall in taken[implementation]]) for implementation in runs}
    for implementation, row in rows.items():
        if implementation in runs:
            hosts = [1e6 * host for host, _ in taken[implementation]]
            row.host_us = Spread.of(hosts)
            row.us = Spread.of([1e6 * wall for wall in walls[implementation].seconds])
            row.repeats = len(hosts)
            row.ratios = {i: walls[implementation].relative_to(walls[i]) for i in walls if i != implementation}
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TASKS, required=True)
    parser.add_argument("--optimizers", nargs="+", choices=CASES, default=["SGD-Nesterov", "AdamW"], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the repeats of a case")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--lines", type=Path, required=True, metavar="FILE", help="append a JSON line per result")
    options = parser.parse_args(arguments)
    device = DEVICES[options.device]()
    append(
        options.lines,
        (
            row.as_dict()
            for mode in MODES
            for optimizer in options.optimizers
            for row in measure(device, options.model, optimizer, mode=mode, seconds=options.seconds)
        ),
    )


if __name__ == "__main__":
    main()
