"""Train small convolutional networks on a GPU, the time of a whole step: a JSON line per result.

    python benchmarks/gpu_training.py --model lenet --lines rows.jsonl

Every implementation trains a copy of the model of its own, on images drawn once; they take turns within every repeat.
In three modes:
    course: the loop that courses teach, on a DataLoader that shuffles tensors of the CPU, each batch moved to the
        device and each loss read; with torch's optimizer as it comes, with fused=True, torch.compile, and ours;
    eager: forward, backward and step on one batch on the device, the host as far ahead as it likes;
    graph: the same as one CUDA graph.
A row says images per second, and what share of the device's time the optimizer's step alone takes.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gpu_steps import FEWEST_REPEATS, MOST_REPEATS, append
from torch import nn
from torch.nn import functional as F

from fusedopt.benchmark.devices import DEVICES, Device, Run, host_and_wall
from fusedopt.benchmark.implementations import CASES, OURS
from fusedopt.benchmark.timing import Sample, Spread, turns

CALLS = 10  # steps between two looks at the clock
MODES = ("graph", "eager", "course")
COURSE = "torch"  # its optimizer without an option
COMPILED = "torch.compile, fused"


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
    step_us: Spread | None = None
    """Of the optimizer's step alone, on the device."""
    error: str | None = None

    @property
    def images_per_second(self) -> float | None:
        """Trained on."""
        return None if self.us is None else self.batch_size / self.us.median * 1e6

    @property
    def step_share(self) -> float | None:
        """Of the whole, that of the optimizer's step."""
        return None if self.us is None or self.step_us is None else self.step_us.median / self.us.median

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        shown = {"images_per_second": self.images_per_second, "step_share": self.step_share}
        return {"kind": "training", **asdict(self), **shown}


def training_row(values: dict[str, Any]) -> TrainingRow:
    """The row that ``as_dict`` made these values of."""
    kept = {name: values[name] for name in TrainingRow.__dataclass_fields__}
    for name in ("us", "host_us", "step_us"):
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


def _resnet9() -> nn.Module:
    from fusedopt.models import ResNet9

    return ResNet9(3, 10)


TASKS = {
    "lenet": Task(_lenet, 64, (1, 28, 28), 10),  # Fashion-MNIST's images
    "resnet9": Task(_resnet9, 128, (3, 32, 32), 10),  # CIFAR's
}


@dataclass
class Data:
    """Images and labels drawn at random, as many as some batches need, and how they come to a step."""

    device: torch.device
    images: torch.Tensor
    labels: torch.Tensor
    batch_size: int

    @classmethod
    def drawn(cls, task: Task, device: torch.device, batches: int) -> "Data":
        """On the CPU, where a data set lies."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batches * task.batch_size, *task.image, generator=generator)
        labels = torch.randint(task.classes, (len(images),), generator=generator)
        return cls(device, images, labels, task.batch_size)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first, on the device."""
        return self.images[: self.batch_size].to(self.device), self.labels[: self.batch_size].to(self.device)

    def shuffled(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches on the CPU, epoch after epoch."""
        dataset = torch.utils.data.TensorDataset(self.images, self.labels)
        loader = torch.utils.data.DataLoader(dataset, batch_size=self.batch_size, shuffle=True)
        while True:
            yield from loader


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> Run:
    """One step of training, as a call."""

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def course_step(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data) -> Run:
    """A step of the loop that courses teach, as a call."""
    batches = data.shuffled()
    total = 0.0

    def run() -> None:
        nonlocal total
        images, labels = next(batches)
        images, labels = images.to(data.device), labels.to(data.device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()

    return run


def factories(optimizer: str, mode: str) -> dict[str, Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]]:
    """How to make the optimizer of each implementation of a mode."""
    made = CASES[optimizer].factories(capturable=mode == "graph")
    names = {OURS: OURS, COURSE: "foreach", "fused": "fused", COMPILED: "fused"}
    if mode != "course":
        names = {OURS: OURS, "foreach": "foreach", "fused": "fused"}
    return {name: made[form] for name, form in names.items() if form in made}


def measure(
    device: Device,
    name: str,
    optimizer: str,
    *,
    mode: str,
    seconds: float,
    batch_size: int | None = None,
    calls: int = CALLS,
) -> Iterator[TrainingRow]:
    """Time every implementation of a mode."""
    task = TASKS[name] if batch_size is None else replace(TASKS[name], batch_size=batch_size)
    torch.manual_seed(0)
    model = task.build().to(device.device)
    data = Data.drawn(task, device.device, batches=2 if batch_size else 32)
    images, labels = data.batch()
    rows: dict[str, TrainingRow] = {}
    runs: dict[str, Run] = {}

    def fail(implementation: str, error: Exception) -> None:
        rows[implementation].error = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        runs.pop(implementation, None)

    steps: dict[str, Run] = {}
    for implementation, make in factories(optimizer, mode).items():
        rows[implementation] = TrainingRow(name, optimizer, implementation, mode, task.batch_size)
        try:
            own = copy.deepcopy(model)
            own_optimizer = make(list(own.parameters()))
            steps[implementation] = own_optimizer.step
            trained = torch.compile(own) if implementation == COMPILED else own
            if mode == "course":
                run = course_step(trained, own_optimizer, data)
            else:
                run = training_step(trained, own_optimizer, images, labels)
            runs[implementation] = device.graph(run) if mode == "graph" else run
            host_and_wall(device, runs[implementation], 3)
        except Exception as error:
            fail(implementation, error)

    taken: dict[str, list[tuple[float, float]]] = {implementation: [] for implementation in runs}
    for implementation in turns(list(runs), most=MOST_REPEATS, fewest=FEWEST_REPEATS, seconds=seconds):
        if implementation not in runs:  # it has failed
            continue
        try:
            taken[implementation].append(host_and_wall(device, runs[implementation], calls))
        except Exception as error:
            fail(implementation, error)

    walls = {implementation: Sample(calls, [wall for _, wall in taken[implementation]]) for implementation in runs}
    for implementation, row in rows.items():
        if implementation in runs:
            hosts = [1e6 * host for host, _ in taken[implementation]]
            row.host_us = Spread.of(hosts)
            row.us = Spread.of([1e6 * wall for wall in walls[implementation].seconds])
            row.repeats = len(hosts)
            alone = [1e6 * device.device_seconds(steps[implementation], row.host_us.median * 1e-6) for _ in range(5)]
            row.step_us = Spread.of(alone)
            row.ratios = {i: walls[implementation].relative_to(walls[i]) for i in walls if i != implementation}
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TASKS, required=True)
    parser.add_argument("--optimizers", nargs="+", choices=CASES, default=["SGD-Nesterov", "AdamW"], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the repeats of a case")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--tiny", action="store_true", help="batches of 2 and the fewest steps: a rehearsal")
    parser.add_argument("--lines", type=Path, required=True, metavar="FILE", help="append a JSON line per result")
    options = parser.parse_args(arguments)
    device = DEVICES[options.device]()
    how: dict[str, Any] = {"seconds": options.seconds}
    if options.tiny:
        how = {"seconds": 0.0, "batch_size": 2, "calls": 1}
    append(
        options.lines,
        (
            row.as_dict()
            for mode in options.modes
            for optimizer in options.optimizers
            for row in measure(device, options.model, optimizer, mode=mode, **how)
        ),
    )


if __name__ == "__main__":
    main()
