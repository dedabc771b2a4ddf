"""Training recipes, measured over several seeds: `python -m fusedopt.examples.recipes rps --seeds 5`.

The choices were made on a part of the training images: for Rock-Paper-Scissors on those of five of the seven hands,
which a training on two has not seen, for the photographs on two whole shooting sessions, for Fashion-MNIST on a random
tenth.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fusedopt.data import Augmentation, Compose, ImageData, Normalize, hold_out, make_augmentation
from fusedopt.models import CNN2, MLP3, GarmentClassifier, ResNet9
from fusedopt.tasks import TASKS
from fusedopt.training import Epoch, Settings, make_loss, make_optimizer, optimizer_names, predict, seeded, train


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, and one cycle of learning rate and momentum over all steps.

    Attributes:
        dataset: a key of `TASKS`.
        model: makes the network, with fresh weights.
        augmentations: each with its options.
        held_out: share of the training images that is not trained on.
        amp: see `fusedopt.training.Settings`.
    """

    dataset: str
    model: Callable[[], nn.Module]
    epochs: int
    batch_size: int
    max_lr: float
    augmentations: tuple[Augmentation, ...] = ()
    label_smoothing: float = 0.0
    held_out: float = 0.0
    amp: str | None = None


RECIPES = {
    "rps": Recipe(
        "rps",
        lambda: CNN2(n_feature=5, p=0.3),
        epochs=10,
        batch_size=16,
        max_lr=5e-3,
        augmentations=(
            make_augmentation("flip", 3),
            make_augmentation("crop", 3, padding=4),
            make_augmentation("color-jitter", 3, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
        ),
    ),
    "rps-photos": Recipe(
        "rps-photos",
        # Channels last and bfloat16: quicker on a CPU.
        lambda: ResNet9(classes=3, width=24).to(memory_format=torch.channels_last),
        epochs=40,
        batch_size=32,
        max_lr=3e-3,
        augmentations=(
            make_augmentation("flip", 3),
            make_augmentation("flip", 3, vertical=True),
            make_augmentation("rotate", 3, degrees=20),
            make_augmentation("crop", 3, padding=4),
            make_augmentation("color-jitter", 3, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05),
            make_augmentation("cutout", 3, size=10),
        ),
        amp="bf16",
    ),
    "fashion-mnist-lenet": Recipe(
        "fashion-mnist",
        lambda: GarmentClassifier(activation="gelu", normalization="batch"),
        epochs=10,
        batch_size=64,
        max_lr=6e-3,
    ),
    "fashion-mnist": Recipe(
        "fashion-mnist", lambda: MLP3(activation="gelu"), epochs=10, batch_size=128, max_lr=3e-3, held_out=0.1
    ),
}


@dataclass(frozen=True)
class Trained:
    """What a recipe led to.

    Attributes:
        epochs: their accuracies are those on the test images.
        predicted: int64 [N], the label of each test image after the last epoch.
    """

    epochs: list[Epoch]
    predicted: Tensor


def run(recipe: Recipe, data: ImageData, seed: int, optimizer_name: str = "adamw") -> Trained:
    """Trains with one seed."""
    if recipe.held_out:
        rest = hold_out(data, recipe.held_out)
        data = ImageData(
            data.name, data.classes, rest.train_images, rest.train_labels, data.test_images, data.test_labels
        )
    model = seeded(recipe.model, seed)
    torch.manual_seed(seed)  # of dropout
    optimizer = make_optimizer(optimizer_name, model.parameters(), lr=recipe.max_lr)
    epochs = train(
        model,
        optimizer,
        data,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=seed,
        augmentation=Compose(recipe.augmentations) if recipe.augmentations else None,
        loss_fn=make_loss("cross-entropy", label_smoothing=recipe.label_smoothing),
        settings=Settings(schedule="one-cycle", amp=recipe.amp),
    )
    return Trained(list(epochs), predict(model, data.test_images, Normalize(data.train_images)))


def confusion(truth: Tensor, predicted: Tensor, classes: Sequence[str]) -> str:
    """Returns a table of how often images int64 [N] of each class (a row) were taken for each class (a column)."""
    counts = torch.bincount(truth * len(classes) + predicted, minlength=len(classes) ** 2).view(len(classes), -1)
    width = max(map(len, classes)) + 2
    rows = zip(("", *classes), (classes, *counts.tolist()), strict=True)
    return "\n".join(f"{name:<{width}}" + "".join(f"{cell:>{width}}" for cell in cells) for name, cells in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a recipe with seeds 0, 1, ... and prints the test accuracies at the end, and what was confused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--optimizer", choices=optimizer_names(), default="adamw", help="torch.adamw for PyTorch's own")
    parser.add_argument("--data-dir", type=Path, help="as for `fusedopt train`")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    torch.set_num_threads(1)
    recipe = RECIPES[options.name]
    data = TASKS[recipe.dataset].load(options.data_dir, print)
    accuracies, predicted = [], []
    for seed in range(options.seeds):
        trained = run(recipe, data, seed, options.optimizer)
        predicted.append(trained.predicted)
        accuracies.append(100 * trained.epochs[-1].accuracy)
        seconds = sum(epoch.seconds for epoch in trained.epochs)
        print(f"seed {seed}: test accuracy {accuracies[-1]:.2f} %, {seconds:.1f} s", flush=True)
    low, high = min(accuracies), max(accuracies)
    print(f"mean of {options.seeds} seeds: {statistics.mean(accuracies):.2f} % ({low:.2f} to {high:.2f} %)")
    print("\nwhat the test images of each class were taken for, all seeds together:\n")
    print(confusion(data.test_labels.repeat(options.seeds), torch.cat(predicted), data.classes))


if __name__ == "__main__":
    main()
