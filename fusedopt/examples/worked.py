"""What the worked examples share: their options, and the report on what they trained."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusedopt.data import ImageData
from fusedopt.training import Epoch, RunConfig, RunFolder


@dataclass(frozen=True)
class Options:
    """The options that every example takes."""

    epochs: int
    seed: int
    threads: int
    data_dir: Path | None
    out: Path

    @property
    def device(self) -> torch.device:
        """A GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def amp(self) -> str | None:
        """The precision for large networks: bfloat16 on a GPU, and on CPUs that have instructions for it."""
        known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every PyTorch
        return "bf16" if self.device.type == "cuda" or known.get("avx512_bf16") else None


def read_options(description: str | None, name: str, epochs: int, arguments: Sequence[str] | None) -> Options:
    """Reads the command line of an example, with its number of epochs as the default; sets the CPU threads."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        f"python -m fusedopt.examples.{name}", None, description, formatter_class=formatter
    )
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--data-dir", type=Path, help="as for `fusedopt train`")
    parser.add_argument("--out", type=Path, default=Path("runs") / f"example-{name}", help="the run's folder")
    options = Options(**vars(parser.parse_args(arguments)))
    if min(options.epochs, options.threads) < 1:
        parser.error("--epochs and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)  # of dropout
    return options


def log_training(
    epochs: Iterable[Epoch], model: nn.Module, data: ImageData, options: Options, /, **config: Any
) -> RunFolder:
    """Trains to the end, prints and logs each epoch, and keeps the best weights.

    Args:
        epochs: of `fusedopt.training.train`.
        model, data, options: what is trained, on what, and how.
        config: further fields of the run's `RunConfig`.

    Raises:
        fusedopt.files.FileError: the run's folder is taken, or cannot be written.
    """
    config = {"epochs": options.epochs, "seed": options.seed, **config}
    run = RunFolder.create(options.out, RunConfig.of(data, **config))
    for epoch in epochs:
        run.append(epoch.row())
        if epoch.best:
            run.save_model(model)
        accuracies = f"training accuracy {epoch.train_accuracy:.2%}, test accuracy {epoch.test_accuracy:.2%}"
        print(f"epoch {epoch.number}: loss {epoch.train_loss:.4f}, {accuracies}, {epoch.seconds:.1f} s", flush=True)
    return run


def report(run: RunFolder, data: ImageData) -> None:
    """Prints the top accuracy, and writes the report."""
    from fusedopt.reports import write_report

    print(f"top accuracy: {max(row['test_accuracy'] for row in run.rows):.2%}")
    print(f"report: {write_report(run, data)}")
