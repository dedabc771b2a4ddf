"""Equal curves, fewer updates: an increasing batch size against a decaying learning rate.

The claim of Smith, Kindermans, Ying and Le, "Don't Decay the Learning Rate, Increase the Batch Size"
(https://arxiv.org/abs/1711.00489), in small: a LeNet is trained with SGD and momentum, by a schedule that decays the
learning rate twice; by the batch sizes that `BatchSizeScheduler` makes of it; by half of each, where a cap on the
batch size leaves the second decay to the learning rate; and, as a control, with neither.

    python benchmarks/batch_size.py                         # drawn hands, about four minutes on one core
    python benchmarks/batch_size.py --dataset fashion-mnist --batch-size 64 --epochs 6 --seeds 1
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import BatchSampler, RandomSampler

import fusedopt
from fusedopt.benchmark.machine import machine_line
from fusedopt.data import ImageData, Normalize
from fusedopt.schedulers import BatchSizeScheduler
from fusedopt.tasks import TASKS, Task
from fusedopt.training import accuracy, seeded

REGIMES = ("decaying lr", "hybrid", "increasing batch", "control")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        losses: for each epoch, the mean cross-entropy over the training images after it.
        accuracies: for each epoch, the share of the test images classified correctly after it, 0 to 1.
        batch_sizes, lrs: for each epoch, what it was trained with.
        updates: number of optimizer steps.
    """

    losses: list[float]
    accuracies: list[float]
    batch_sizes: list[int]
    lrs: list[float]
    updates: int


def train(task: Task, data: ImageData, regime: str, seed: int, options: argparse.Namespace) -> Run:
    """Train once; the schedule divides the noise lr / B by the factor, every third of the run."""
    model = seeded(task.network, seed)
    optimizer = fusedopt.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(range(len(data.train_labels)), generator=generator)
    batches = BatchSampler(sampler, options.batch_size, drop_last=False)
    gamma = 1.0 if regime == "control" else 1 / options.factor
    schedule = StepLR(optimizer, -(-options.epochs // 3), gamma)
    caps = {"hybrid": options.batch_size * options.factor, "increasing batch": len(data.train_labels)}
    scheduler = BatchSizeScheduler(schedule, batches, max_batch_size=caps.get(regime, options.batch_size))
    normalize = Normalize(data.train_images)
    run = Run([], [], [], [], 0)
    updates = 0
    for _ in range(options.epochs):
        run.batch_sizes.append(scheduler.batch_size)
        run.lrs.append(scheduler.get_last_lr()[0])
        model.train()
        for index in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(normalize(data.train_images[index])), data.train_labels[index])
            loss.backward()
            optimizer.step()
            updates += 1
        scheduler.step()
        run.losses.append(mean_loss(model, data, normalize))
        run.accuracies.append(accuracy(model, data.test_images, data.test_labels, normalize))
    return Run(run.losses, run.accuracies, run.batch_sizes, run.lrs, updates)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, data: ImageData, normalize: Normalize) -> float:
    """Return the mean cross-entropy over the training images."""
    model.eval()
    pairs = zip(torch.split(data.train_images, 1000), torch.split(data.train_labels, 1000), strict=True)
    total = sum(F.cross_entropy(model(normalize(x)), y, reduction="sum").item() for x, y in pairs)
    return total / len(data.train_labels)


def summary(runs: dict[str, list[Run]]) -> str:
    """Return a row per regime as Markdown, means over the seeds at the end of the training."""
    lines = [
        "| | batch sizes | learning rates | updates | training loss | test accuracy % |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for name, group in runs.items():
        batch_sizes = ", ".join(str(size) for size in dict.fromkeys(group[0].batch_sizes))
        lrs = ", ".join(f"{lr:.3g}" for lr in dict.fromkeys(group[0].lrs))
        loss = _with_spread([run.losses[-1] for run in group], ".4f")
        share = _with_spread([100 * run.accuracies[-1] for run in group], ".2f")
        lines.append(f"| {name} | {batch_sizes} | {lrs} | {group[0].updates:,} | {loss} | {share} |")
    return "\n".join(lines)


def curves(runs: dict[str, list[Run]]) -> str:
    """Return the training loss after each epoch as Markdown, means over the seeds."""
    lines = ["| epoch | " + " | ".join(runs) + " |", "| ---: |" + " ---: |" * len(runs)]
    for epoch in range(len(next(iter(runs.values()))[0].losses)):
        cells = [_with_spread([run.losses[epoch] for run in group], ".4f") for group in runs.values()]
        lines.append(f"| {epoch + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_spread(values: Sequence[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every regime with every seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=TASKS, default="hands")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16, help="at the start")
    parser.add_argument("--lr", type=float, default=0.01, help="at the start")
    parser.add_argument("--factor", type=int, default=5, help="of each of the two decays")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    task = TASKS[options.dataset]
    data = task.load(options.data_dir, print)
    runs = {name: [train(task, data, name, seed, options) for seed in range(options.seeds)] for name in REGIMES}
    of = f"mean ± standard deviation over {options.seeds} seed(s)"
    print(f"{data.name}, SGD with momentum 0.9, {of}; {machine_line()}\n")
    print(summary(runs), "Training loss after each epoch:", curves(runs), sep="\n\n")


if __name__ == "__main__":
    main()
