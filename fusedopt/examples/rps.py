"""Rock-Paper-Scissors: a small convolutional network, and what its gradients do while it learns.

    python -m fusedopt.examples.rps

AdamW, whose learning rate rises and falls in one cycle, with hands that are flipped, moved and coloured at random: the
recipe of `fusedopt.examples.recipes`, which says how it was chosen. The gradients and weights of the first layer are
captured all along, and drawn in the report.
"""

from __future__ import annotations

from collections.abc import Sequence

import fusedopt
from fusedopt.data import Compose, load_rps, make_augmentation
from fusedopt.examples.worked import log_training, read_options, report
from fusedopt.models import CNN2
from fusedopt.training import Settings, seeded, train


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and writes a report."""
    options = read_options(__doc__, "rps", 10, arguments)
    data = load_rps(options.data_dir)
    classes = len(data.classes)
    augmentation = Compose(
        [
            make_augmentation("flip", classes),
            make_augmentation("crop", classes, padding=4),
            make_augmentation("color-jitter", classes, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
        ]
    )
    model = seeded(lambda: CNN2(n_feature=5, p=0.3), options.seed).to(options.device)
    optimizer = fusedopt.AdamW(model.parameters(), lr=5e-3)  # was torch.optim.AdamW
    with fusedopt.capture(model, layers=["conv1"], every=10) as history:
        run = log_training(
            train(
                model,
                optimizer,
                data,
                epochs=options.epochs,
                batch_size=16,
                seed=options.seed,
                augmentation=augmentation,
                settings=Settings(schedule="one-cycle"),
            ),
            model,
            data,
            options,
            dataset="rps",
            model="cnn2",
            model_options={"n_feature": 5, "p": 0.3},
            optimizer="adamw",
            optimizer_options={"lr": 5e-3},
            batch_size=16,
            augmentations=("flip", "crop", "color-jitter"),
            schedule="one-cycle",
        )
    history.save(run.folder / "history.pt")
    report(run, data)


if __name__ == "__main__":
    main()
