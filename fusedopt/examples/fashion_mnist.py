"""Fashion-MNIST: a network of three linear layers, with batch normalization, trained for ten epochs.

    python -m fusedopt.examples.fashion_mnist

AdamW, whose learning rate rises and falls in one cycle.
"""

from __future__ import annotations

from collections.abc import Sequence

import fusedopt
from fusedopt.data import load_fashion_mnist
from fusedopt.examples.worked import log_training, read_options, report
from fusedopt.models import MLP3
from fusedopt.training import Settings, seeded, train


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and writes a report."""
    options = read_options(__doc__, "fashion_mnist", 10, arguments)
    data = load_fashion_mnist(options.data_dir)
    model = seeded(lambda: MLP3(activation="gelu"), options.seed).to(options.device)
    optimizer = fusedopt.AdamW(model.parameters(), lr=3e-3)  # was torch.optim.AdamW
    run = log_training(
        train(
            model,
            optimizer,
            data,
            epochs=options.epochs,
            batch_size=128,
            seed=options.seed,
            settings=Settings(schedule="one-cycle"),
        ),
        model,
        data,
        options,
        dataset="fashion-mnist",
        model="mlp3",
        model_options={"activation": "gelu"},
        optimizer="adamw",
        optimizer_options={"lr": 3e-3},
        batch_size=128,
        schedule="one-cycle",
    )
    report(run, data)


if __name__ == "__main__":
    main()
