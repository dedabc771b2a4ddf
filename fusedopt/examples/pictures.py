"""The pictures of the documentation: `python -m fusedopt.examples.pictures averages momentum --out docs`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fusedopt
from fusedopt.averages import ewma, moving_average
from fusedopt.data import load_fashion_mnist, make_hands
from fusedopt.extras import named_if_missing
from fusedopt.gradients import capture
from fusedopt.models import GarmentClassifier, HandClassifier
from fusedopt.optim.sgd import MomentumForm
from fusedopt.training import OPTIMIZERS, make_optimizer, seeded, train

with named_if_missing():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPERATURES = (
    (5, 11, 15, 6, 5, 3, 3, 0, 0, 3, 4, 2, 1, -1, -2, 2, 2, -2, -1, -1, 3, 4, -1, 2, 6, 4, 9, 11, 9, -2)
)  # fmt: skip
"""Thirty days, from D. Voigt Godoy, "Deep Learning with PyTorch Step-by-Step", volume II, chapter 6."""
_PERIOD = 19


def draw_averages(path: Path) -> None:
    """Draws the temperatures with their moving average and their EWMA, with and without bias correction."""
    days = range(1, len(TEMPERATURES) + 1)
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(days, TEMPERATURES, "o", color="#9a9a9a", markersize=5, label="temperature")
    axes.plot(days[_PERIOD - 1 :], moving_average(TEMPERATURES, _PERIOD), color="#3a7d44", linewidth=2.5)
    axes.plot(days, ewma(TEMPERATURES, period=_PERIOD), color="#c8553d", linewidth=2, linestyle="--")
    axes.plot(days, ewma(TEMPERATURES, period=_PERIOD, corrected=True), color="#1f6fb4", linewidth=2.5)
    labels = ("temperature", "moving average of 19 days", "EWMA, alpha = 0.1", "EWMA, alpha = 0.1, bias corrected")
    for line, label in zip(axes.lines, labels, strict=True):
        line.set_label(label)
    axes.annotate(
        "starts at 0: too low\nuntil it is corrected",
        xy=(3, 2.9),
        xytext=(4.5, -2.2),
        arrowprops={"arrowstyle": "->", "color": "#c8553d"},
        color="#c8553d",
    )
    axes.set(xlabel="day", ylabel="temperature (°C)", title="A moving average, and the EWMA of the same average age")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper center", ncols=2)
    figure.savefig(path, dpi=110)


def draw_capture(path: Path) -> None:
    """Trains the LeNet on drawn hands with AdamW, and draws its gradients and weights over time."""
    model = seeded(HandClassifier, 0)
    with capture(model) as history:
        for _ in train(model, make_optimizer("adamw", model.parameters()), make_hands(), epochs=6, batch_size=32):
            pass
    figure = history.plot()
    figure.suptitle("LeNet on drawn hands, AdamW: what the optimizer is given, and what it moves")
    figure.savefig(path, dpi=80)


def _step_lengths(form: MomentumForm, rates: Sequence[float]) -> list[float]:
    """How far each step of SGD with momentum 0.9 goes where the gradient is always 1."""
    p, lengths = torch.zeros((), dtype=torch.float64), []
    optimizer = fusedopt.SGD([p], momentum=0.9, momentum_form=form)
    for lr in rates:
        before = p.item()
        p.grad, optimizer.param_groups[0]["lr"] = torch.ones_like(p), lr
        optimizer.step()
        lengths.append(before - p.item())
    return lengths


def draw_momentum(path: Path) -> None:
    """Draws the steps of both forms of momentum while the learning rate falls, and rises again."""
    rates = [0.1] * 60 + [0.01] * 50 + [0.1] * 50
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    rate_axes, length_axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.4))
    rate_axes.step(range(len(rates)), rates, where="mid", color="black", linewidth=1.5)
    rate_axes.set(ylabel="learning rate", ylim=(0, 0.12), title="Two forms of momentum 0.9, the gradient always 1")
    classic = {"color": "#1f6fb4", "linewidth": 4, "label": 'momentum_form="classic": lr inside'}
    outside = {"color": "#e0a458", "linewidth": 2, "linestyle": "--", "label": 'momentum_form="torch": lr outside'}
    length_axes.plot(_step_lengths("classic", rates), **classic)
    length_axes.plot(_step_lengths("torch", rates), **outside)
    arrow = {"arrowprops": {"arrowstyle": "->", "color": "#555555"}, "color": "#333333"}
    length_axes.annotate("a constant rate:\nboth the same", xy=(18, 0.84), xytext=(24, 0.5), **arrow)
    length_axes.annotate("the past is\nrescaled at once", xy=(59.6, 0.3), xytext=(35, 0.14), **arrow)
    length_axes.annotate("past steps go on\nwith their own rate", xy=(66, 0.53), xytext=(73, 0.7), **arrow)
    length_axes.set(xlabel="step", ylabel="length of the step", ylim=(0, 1.25))
    length_axes.legend(frameon=False, loc="upper center", ncols=2)
    for axes in (rate_axes, length_axes):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


SWATS_EPOCHS, SWATS_BATCH = 8, 64
SWATS_RUNS: dict[str, tuple[str, dict[str, float], dict[str, Any]]] = {
    "Adam": ("adam", {}, {"color": "#9a9a9a", "linewidth": 5, "alpha": 0.6}),
    "SGD, momentum 0.9": ("sgd", {}, {"color": "#3a7d44"}),
    "SWATS, eps=1e-9": ("swats", {"eps": 1e-9}, {"color": "black", "linestyle": ":"}),
    "SWATS, eps=1e-4": ("swats", {"eps": 1e-4}, {"color": "#1f6fb4"}),
    "SWATS, eps=1e-3": ("swats", {"eps": 1e-3}, {"color": "#c8553d"}),
}
"""The runs by name: the optimizer at the examples' learning rate, its options, and how it is drawn."""


def draw_swats(path: Path) -> None:
    """Trains the LeNet on Fashion-MNIST with Adam, SGD and SWATS; draws test accuracies, switches and projections."""
    data = load_fashion_mnist()
    steps = -(-len(data.train_labels) // SWATS_BATCH)
    figure = Figure(figsize=(12, 5), layout="constrained")
    accuracy_axes, projection_axes = figure.subplots(1, 2)
    for label, (name, options, style) in SWATS_RUNS.items():
        model = seeded(GarmentClassifier, 0)
        optimizer = make_optimizer(name, model.parameters(), **options)
        switches: list[list[float]] = []
        if isinstance(optimizer, fusedopt.SWATS):
            optimizer.register_step_post_hook(_keep_switch(switches))
        epochs = list(train(model, optimizer, data, epochs=SWATS_EPOCHS, batch_size=SWATS_BATCH))
        numbers, accuracies = [e.number for e in epochs], [100 * e.accuracy for e in epochs]
        outcome = "never switches" if switches else None
        if switches and switches[-1][2]:
            at, ratio = switches[-1][0], switches[-1][2]
            accuracy_axes.axvline(at / steps, color=style["color"], linewidth=1, linestyle="--")
            outcome = f"step {at:.0f}, \u039b = {ratio * OPTIMIZERS[name].lr:.3f}"
        text = f"{label}: {outcome}" if outcome else label
        accuracy_axes.plot(numbers, accuracies, marker="o", markersize=3, label=text, **style)
        print(f"{text}; test accuracy {' '.join(f'{accuracy:.2f}' for accuracy in accuracies)} %")
        if options.get("eps") == 1e-9:
            _draw_projections(projection_axes, switches, beta=0.999)
    accuracy_axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="LeNet on Fashion-MNIST, one seed")
    accuracy_axes.legend(frameon=False, loc="lower right")
    for axes in (accuracy_axes, projection_axes):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _keep_switch(switches: list[list[float]]) -> Callable[..., None]:
    return lambda optimizer, *_: switches.append(optimizer.param_groups[0]["switch"].tolist())


def _draw_projections(axes: Axes, switches: list[list[float]], beta: float) -> None:
    """Draws each step's projection, read back from how the average moved, and the average without its bias."""
    averages = torch.tensor([0.0] + [average for _, average, _ in switches], dtype=torch.float64)
    counts = torch.arange(1, len(averages), dtype=torch.float64)
    projections = (averages[1:] - beta * averages[:-1]) / (1 - beta)
    axes.plot(counts, projections, ".", markersize=1.5, color="#9a9a9a", label="\u03b3, this step's")
    axes.plot(
        counts,
        averages[1:] / (1 - beta**counts),
        color="black",
        label="\u03bb / (1 - \u03b2\u2082\u1d4f), their average",
    )
    axes.set(yscale="log", xlabel="step", title="Step sizes of SGD that match Adam's steps")
    axes.legend(frameon=False, loc="upper right", markerscale=5)


DRAWINGS = {"averages": draw_averages, "capture": draw_capture, "momentum": draw_momentum, "swats": draw_swats}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the pictures that are named, by default all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"by default all of {', '.join(DRAWINGS)}")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder for the pictures")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(DRAWINGS):
        parser.error(f"there is no picture {sorted(unknown)[0]!r}; choose from {', '.join(DRAWINGS)}")
    torch.set_num_threads(1)  # the same picture on every machine
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or DRAWINGS:
        DRAWINGS[name](options.out / f"{name}.png")


if __name__ == "__main__":
    main()
