"""The demo: learns Rock-Paper-Scissors with a fused optimizer, and times it against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from fusedopt.benchmark.comparing import compare
from fusedopt.data import ImageData, Normalize, make_hands
from fusedopt.examples.figures import plot_training
from fusedopt.models import HandClassifier
from fusedopt.reports import write_report
from fusedopt.runs.folder import make_folder
from fusedopt.training import OPTIMIZERS, Epoch, RunConfig, RunFolder, make_optimizer, predict, seeded, train

_BATCH_SIZE = 32


def run_demo(
    out: Path,
    epochs: int = 6,
    *,
    data: ImageData | None = None,
    seconds: float = 20.0,
    say: Callable[[str], None] = print,
) -> tuple[Path, Path, Path]:
    """Trains, measures, prints both, and draws them.

    Args:
        out: the folder for the pictures and the run; it is made if need be.
        epochs: passes over the training images.
        data: images of hands; drawn by default.
        seconds: for the times of the steps, about.
        say: prints a line.

    Returns:
        The pictures `training.png` and `step_times.png`, and the report on the training, `run/report.html`.

    Raises:
        fusedopt.files.FileError: the folder cannot be made or written, or its `run` is a run on other images.
    """
    make_folder(out)
    if data is None:
        data = make_hands()
    count, test_count = len(data.train_labels), len(data.test_labels)
    say(f"{count} drawn hands to learn from, {test_count} to test on: {', '.join(data.classes)}")
    config = RunConfig.of(
        data,
        dataset="hands",
        model="lenet",
        optimizer="adamw",
        optimizer_options={"lr": OPTIMIZERS["adamw"].lr},
        epochs=epochs,
        batch_size=_BATCH_SIZE,
        seed=0,
    )
    run = RunFolder.create(out / "run", config, resume=True)  # in the place of an earlier demo's

    def keep(epoch: Epoch, network: nn.Module) -> None:
        run.append(epoch.row())
        if epoch.best:
            run.save_model(network)

    runs: dict[str, list[Epoch]] = {}
    model = HandClassifier()
    for label, name in (("torch.optim.AdamW", "torch.adamw"), ("fusedopt.AdamW", "adamw")):
        model = seeded(HandClassifier, 0)
        optimizer = make_optimizer(name, model.parameters())
        on_epoch = keep if name == "adamw" else None
        runs[label] = list(train(model, optimizer, data, epochs=epochs, batch_size=_BATCH_SIZE, on_epoch=on_epoch))
        last = runs[label][-1]
        say(f"{label:<18} {epochs} epochs: loss {last.train_loss:.4f}, test accuracy {last.test_accuracy:.1%}")

    normalize = Normalize(data.train_images)
    predicted = predict(model, data.test_images, normalize)
    training, step_times = out / "training.png", out / "step_times.png"
    ours_first = dict(reversed(runs.items()))
    plot_training(training, ours_first, data.test_images, data.test_labels, predicted, data.classes)

    comparison = compare(model, seconds=seconds)
    say(f"\n{comparison}\n")
    comparison.plot(step_times)
    say(f"pictures: {training}, {step_times}")
    page = write_report(run, data)
    say(f"report of the training, with its best epoch: {page}")
    return training, step_times, page
