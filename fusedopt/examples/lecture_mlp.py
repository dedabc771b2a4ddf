"""A lecture's experiments with a small network on Fashion-MNIST, as one sweep: activations, initializations, dropout.

    python -m fusedopt.examples.lecture_mlp --seeds 2

The networks, rates and numbers of epochs are those of ten notebooks on the homework of a course, and next to each
accuracy stands what the notebook's output says. All are trained with plain SGD in batches of 64 on 55,000 images. But
the learning rate falls to 0 along a cosine here, where it was constant there; images are standardized with their own
mean and standard deviation, not with 0.5; Kaiming's weights are normal, not uniform, with the same variance.

Source: S. Raschka, STAT 453, https://github.com/rasbt/stat453-deep-learning-ss20, L11-optim/code/HW03-experiments.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import fusedopt
from fusedopt.data import ImageData, hold_out, load_fashion_mnist
from fusedopt.models import MLP, LectureMLP
from fusedopt.training import Settings, seeded, train

HELD_OUT = 1 / 12  # as the notebooks have it; not looked at
FALLING = Settings(schedule="cosine", min_lr=1e-6)


@dataclass(frozen=True)
class Variant:
    """One of the notebooks.

    Attributes:
        published: accuracy on the test images in its output, in percent.
        model: makes the network, with fresh weights.
        lr: where the learning rate begins.
    """

    published: float
    model: Callable[[], nn.Module]
    lr: float = 0.1
    epochs: int = 50


def drawn(draw: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Returns what makes the lecture's network with weights drawn by a function of `torch.nn.init`, and biases of 0."""

    def make() -> nn.Module:
        model = LectureMLP()
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                draw(layer.weight)
                nn.init.zeros_(layer.bias)
        return model

    return make


def _relu(initialization: str = "kaiming", *, normalization: str = "none", dropout: float | Sequence[float] = 0.0):  # type: ignore[no-untyped-def]
    return lambda: LectureMLP(
        activation="relu", initialization=initialization, normalization=normalization, dropout=dropout
    )


VARIANTS = {
    "tanh, weights N(0, 1)": Variant(66.61, drawn(nn.init.normal_), lr=0.01),
    "tanh, weights U(0, 1)": Variant(11.72, drawn(nn.init.uniform_), lr=0.01),
    "tanh": Variant(87.88, LectureMLP),
    "ReLU": Variant(87.21, _relu("default")),
    "ReLU, Kaiming": Variant(87.78, _relu()),
    "ReLU, batch norm": Variant(88.56, _relu("default", normalization="batch")),
    "ReLU, Kaiming, batch norm": Variant(88.45, _relu(normalization="batch")),
    "ReLU, Kaiming, dropout .5": Variant(78.63, _relu(dropout=0.5)),
    # The networks of the last two are those that the notebooks' outputs print, not those that their names say.
    "ReLU, Kaiming, b. norm, dropout .5 .3 .2": Variant(
        87.78, _relu(normalization="batch", dropout=(0.5, 0.3, 0.2)), epochs=100
    ),
    "784-1000-10, batch norm, dropout .5": Variant(
        89.30,
        lambda: MLP((784, 1000, 10), normalization="batch", dropout=0.5, initialization="kaiming"),
    ),
}


def run(variant: Variant, data: ImageData, seed: int) -> float:
    """Trains with one seed; returns the accuracy on the test images at the end, 0 to 1."""
    rest = hold_out(data, HELD_OUT)
    data = replace(data, train_images=rest.train_images, train_labels=rest.train_labels)
    model = seeded(variant.model, seed)
    torch.manual_seed(seed)  # of dropout
    optimizer = fusedopt.SGD(model.parameters(), lr=variant.lr)
    epochs = train(model, optimizer, data, epochs=variant.epochs, batch_size=64, seed=seed, settings=FALLING)
    return [epoch.accuracy for epoch in epochs][-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains every variant and prints its accuracy beside the published one."""
    parser = argparse.ArgumentParser(
        "python -m fusedopt.examples.lecture_mlp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--data-dir", type=Path, help="as for `fusedopt train`")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    torch.set_num_threads(1)
    data = load_fashion_mnist(options.data_dir, notify=print)
    print(f"{'':<40}{'epochs':>7}{'published':>12}   here, {options.seeds} seed(s)")
    for name, variant in VARIANTS.items():
        found = [100 * run(variant, data, seed) for seed in range(options.seeds)]
        mean = f"{statistics.mean(found):6.2f} % ({min(found):.2f} to {max(found):.2f} %)"
        print(f"{name:<40}{variant.epochs:>7}{variant.published:>10.2f} %   {mean}", flush=True)


if __name__ == "__main__":
    main()
