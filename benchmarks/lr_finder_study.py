"""How good are the suggestions of the LR finder?

Runs the finder on fresh networks, trains at its suggestion, at a third and at three times of it, and at what the other
methods suggest, and compares the accuracies on validation images that neither saw. Another network is one more entry of
`SUBJECTS` (a data set of `fusedopt.tasks` and a model of `fusedopt.examples.find_lr`).

    OMP_NUM_THREADS=1 python benchmarks/lr_finder_study.py --json results.json --plot results.png
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fusedopt.benchmark.machine import machine_line
from fusedopt.data import ImageData
from fusedopt.examples.find_lr import find_on, make_model
from fusedopt.tasks import find_task
from fusedopt.training import OPTIMIZERS, make_optimizer, train

SUBJECTS = {
    "LeNet": ("fashion-mnist", "lenet"),
    "MLP": ("fashion-mnist", "mlp"),
    "CNN2": ("rps", "cnn2"),
    "ResNet-9": ("cifar10", "resnet9"),
}
STUDIED = ("sgd", "rmsprop", "adagrad", "adam", "adamw", "lamb")
METHOD = "minimum"  # the default of find_lr
FACTORS = {"third": 1 / 3, "suggested": 1.0, "three times": 3.0}
OTHERS = ("steepest", "valley", "slide")
CLOSE = 0.005  # accuracies within half a point count as equal: seeds differ by more

Row = dict[str, Any]


def validation_split(data: ImageData, count: int, validation: int, seed: int) -> ImageData:
    """A part of the training images to train on, and another one in the place of the test images."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    if count + validation > len(order):
        raise SystemExit(f"{data.name} has {len(order)} training images, fewer than {count} + {validation}")
    chosen, held_out = order[:count], order[count : count + validation]
    return ImageData(
        data.name,
        data.classes,
        data.train_images[chosen],
        data.train_labels[chosen],
        data.train_images[held_out],
        data.train_labels[held_out],
    )


def study(
    data: ImageData,
    subject: str,
    optimizer: str,
    seeds: Sequence[int],
    epochs: int,
    iterations: int,
    others: Sequence[str],
) -> Row:
    """Suggestions and accuracies for one network and optimizer, one of each per seed."""
    _, model = SUBJECTS[subject]
    suggestions: dict[str, list[float | None]] = {method: [] for method in (METHOD, *OTHERS)}
    accuracies: dict[str, list[float]] = {name: [] for name in (*FACTORS, *OTHERS)}
    for seed in seeds:
        found = find_on(data, model, optimizer, seed=seed, num_iter=iterations).suggestions
        for method, lrs in suggestions.items():
            lrs.append(found.get(method))
        wanted = {name: factor * found[METHOD] for name, factor in FACTORS.items() if METHOD in found}
        for name, lr in (wanted | {m: found[m] for m in others if m in found}).items():
            network = make_model(model, data, seed)
            chosen = make_optimizer(optimizer, network.parameters(), lr=lr)
            *_, last = train(network, chosen, data, epochs=epochs, seed=seed)
            accuracies[name].append(last.accuracy)
    return {"network": subject, "optimizer": optimizer, "suggestions": suggestions, "accuracies": accuracies}


def mean(values: Sequence[float]) -> float:
    """The mean, NaN without values."""
    return statistics.fmean(values) if values else float("nan")


def markdown(rows: Sequence[Row]) -> str:
    """The table: suggested learning rates of the seeds, and mean accuracies in percent."""
    names = [*FACTORS, *OTHERS]
    lines = [
        f"| network | optimizer | suggestions | {' | '.join(names)} |",
        f"| --- | --- | --- |{' ---: |' * len(names)}",
    ]
    for row in rows:
        best = max(mean(row["accuracies"][name]) for name in FACTORS)
        cells = []
        for name in names:
            value = mean(row["accuracies"][name])
            text = f"{100 * value:.1f}" if value == value else "none"
            cells.append(f"**{text}**" if name in FACTORS and value == best else text)
        lrs = ", ".join(f"{lr:.1e}" if lr else "none" for lr in row["suggestions"][METHOD])
        lines.append(f"| {row['network']} | {row['optimizer']} | {lrs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """How often the suggestion was best, and what each method loses against the best learning rate of its row."""
    ahead = sum(
        mean(row["accuracies"]["suggested"]) >= max(mean(row["accuracies"][f]) for f in FACTORS) - CLOSE for row in rows
    )
    lines = [f"the suggestion is the best of the three, or within half a point of it, in {ahead} of {len(rows)} rows"]
    for name in ("suggested", *OTHERS):
        lost = []
        for row in rows:
            best = max(mean(values) for values in row["accuracies"].values() if values)
            lost += [100 * (best - value) for value in row["accuracies"][name]]
        refused = sum(len(row["suggestions"][METHOD]) for row in rows) - len(lost)
        if not lost:
            continue
        label = METHOD if name == "suggested" else name
        lines.append(
            f"{label:<9} loses {mean(lost):4.1f} points on average, {max(lost):4.1f} at worst; "
            f"no suggestion in {refused} runs"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draws the accuracies at a third, one and three times the suggestion, one panel per network."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(max(9, 6 * len(networks)), 5), layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    styles = {"third": ("v", "#8ab6d6"), "suggested": ("o", "#d62728"), "three times": ("^", "#1f4e79")}
    for axes, network in zip(panels, networks, strict=True):
        mine = [row for row in rows if row["network"] == network]
        for shift, name in zip((-0.22, 0.0, 0.22), FACTORS, strict=True):
            marker, color = styles[name]
            for x, row in enumerate(mine):
                values = [100 * value for value in row["accuracies"][name]]
                axes.plot([x + shift] * len(values), values, color=color, linewidth=1.5, alpha=0.6)
                label = {"third": "a third", "suggested": "suggested"}.get(name, name) if x == 0 else None
                axes.scatter(x + shift, mean(values), marker=marker, color=color, s=60, zorder=3, label=label)
        axes.set_xticks(range(len(mine)), [row["optimizer"] for row in mine])
        axes.set_title(network)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation accuracy (%)")
    panels[0].legend(frameon=False, title="learning rate")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=STUDIED)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2], help="of weights and order")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=6_000, help="training images")
    parser.add_argument("--validation", type=int, default=5_000, help="validation images")
    parser.add_argument("--iterations", type=int, default=100, help="learning rates that the finder tries")
    parser.add_argument("--others", nargs="*", choices=OTHERS, default=OTHERS, help="methods to train at, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = perf_counter()
    rows = []
    for subject in options.networks:
        data = find_task(SUBJECTS[subject][0]).load(options.data_dir, print)
        data = validation_split(data, options.images, options.validation, seed=0)
        for optimizer in options.optimizers:
            row = study(data, subject, optimizer, options.seeds, options.epochs, options.iterations, options.others)
            rows.append(row)
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    title = (
        f"{options.images:,} training and {options.validation:,} validation images, {options.epochs} epochs of batches "
        f"of 64, seeds {', '.join(map(str, options.seeds))}"
    )
    print(f"\n{title}\n{machine_line()}, {perf_counter() - start:.0f} s\n\n{markdown(rows)}\n\n{summary(rows)}")
    if options.json:
        options.json.write_text(json.dumps({"title": title, "machine": machine_line(), "rows": rows}, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot, f"Accuracy at the suggested learning rate, a third and three times of it\n{title}")


if __name__ == "__main__":
    main()
