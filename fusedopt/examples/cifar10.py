"""CIFAR-10: a ResNet-9 trained with CutOut and SGD, at the learning rate that the finder suggests.

    python -m fusedopt.examples.cifar10 --epochs 24

Prints the top accuracy; the report has the curves of training and test accuracy, and Grad-CAM on 25 misclassified
images with what the network says and what they are. The learning rate rises and falls in one cycle, whose height is
what the finder suggests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import fusedopt
from fusedopt.data import compose, load_cifar10
from fusedopt.examples.worked import log_training, read_options, report
from fusedopt.models import ResNet9
from fusedopt.training import Settings, seeded, train
from fusedopt.training.auto_lr import find_training_lr

AUGMENTATIONS = ("crop", "flip", "cutout")
WIDTH = 64  # of the network's first convolution


def main(arguments: Sequence[str] | None = None) -> None:
    """Finds a learning rate, trains, and writes a report."""
    options = read_options(__doc__, "cifar10", 24, arguments)
    data = load_cifar10(options.data_dir, notify=print)
    augmentation = compose(AUGMENTATIONS, len(data.classes))
    model = seeded(lambda: ResNet9(width=WIDTH), options.seed).to(options.device).to(memory_format=torch.channels_last)
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    settings = Settings(schedule="one-cycle", amp=options.amp, channels_last=True)

    found = find_training_lr(
        model, optimizer, data, batch_size=128, seed=options.seed, augmentation=augmentation, settings=settings
    )
    print(f"the finder suggests a learning rate of {found.suggestion:.2g}")
    for group in optimizer.param_groups:
        group["lr"] = found.suggestion

    run = log_training(
        train(
            model,
            optimizer,
            data,
            epochs=options.epochs,
            batch_size=128,
            seed=options.seed,
            augmentation=augmentation,
            settings=settings,
        ),
        model,
        data,
        options,
        dataset="cifar10",
        model="resnet9",
        model_options={"width": WIDTH},
        optimizer="sgd",
        optimizer_options={"lr": found.suggestion, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        batch_size=128,
        augmentations=AUGMENTATIONS,
        schedule="one-cycle",
        amp=options.amp,
        settings={"channels_last": True},
    )
    report(run, data)


if __name__ == "__main__":
    main()
