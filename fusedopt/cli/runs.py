"""What `fusedopt train` does with run folders before and after the training."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fusedopt.data import ImageData
    from fusedopt.training import Epoch, RunFolder


def free_folder(name: str) -> Path:
    """Returns the first of runs/NAME-1, -2, ... that is not there yet."""
    return next(folder for number in count(1) if not (folder := Path("runs") / f"{name}-{number}").exists())


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes out of it; removes it again where nothing came into it."""
    from fusedopt.files import locked
    from fusedopt.runs.folder import make_folder

    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    in_use = f"{folder}: is in use by another process; wait for it, or name another folder"
    try:
        with locked(folder, in_use, "name another folder"):
            yield
    finally:
        with suppress(OSError):  # it is not empty
            for path in missing:
                path.rmdir()


@contextmanager
def taken_back(run: RunFolder) -> Iterator[None]:
    """Takes a run back that breaks off before an epoch has ended, so that the next try finds its folder free.

    One that was interrupted, or that found a disk full, is there to be gone on with.
    """
    from fusedopt.files import FileError
    from fusedopt.training import Checkpoint

    try:
        yield
    except FileError:
        raise
    except Exception:
        if not run.rows:
            checkpoints = run.folder / "checkpoints"
            with suppress(OSError):  # the error that is on its way says more
                for path in [*Checkpoint(checkpoints).paths(), run.folder / "config.json"]:
                    path.unlink(missing_ok=True)
                checkpoints.rmdir()
        raise


def conclude(
    run: RunFolder, data: ImageData, results: list[Epoch], tested: str, say: Callable[[str], None], *, report: bool
) -> None:
    """Says what came out of it, and writes the report."""
    config = run.config
    if not results:
        done = len(run.rows)
        if done < config.epochs:
            typer.echo(f"{run.folder} was stopped by --patience after epoch {done}; another patience is another run")
        else:
            typer.echo(f"{run.folder} holds all of the {done} epochs; give a larger --epochs to train on")
        return
    if not _finite(results[-1].row()):
        since = next(row["epoch"] for row in run.rows if not _finite(row))
        typer.echo(f"fusedopt: the loss is not finite since epoch {since}; train again with a lower --lr", err=True)
        raise typer.Exit(1)
    best = max(run.rows, key=lambda row: row["test_accuracy"])
    if results[-1].number < config.epochs:
        say(f"stopped after epoch {results[-1].number}: none better since epoch {best['epoch']:.0f}")
    if report:
        try:
            from fusedopt.reports import write_report

            say(f"report: {write_report(run, data)}")
        except ModuleNotFoundError as error:
            say(f"no report, as {error.name} is not installed; pip install 'fusedopt[examples]'")
    seconds, step_seconds = sum(r.seconds for r in results), sum(r.step_seconds for r in results)
    share = (
        f"{100 * step_seconds / seconds:.1f} % of the time in optimizer.step ({config.optimizer}: {step_seconds:.2f} s"
    )
    if math.isnan(step_seconds):
        share = f"no telling optimizer.step from the rest of a CUDA graph ({config.optimizer}"
    last = f"{tested} accuracy {100 * results[-1].test_accuracy:.2f} % after the last epoch"
    kept = f"{100 * best['test_accuracy']:.2f} % the best (epoch {best['epoch']:.0f}, {run.folder}/model.pt)"
    typer.echo(f"{last}, {kept}; {share} of {seconds:.2f} s training, without evaluation)")


def unusual(settings: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what is as it is by default, or has a place of its own in the configuration."""
    from fusedopt.training.settings import PLAIN

    usual = {"loss": "cross-entropy", "label_smoothing": 0.0, **asdict(PLAIN)}
    kept = {name: value for name, value in settings.items() if name not in ("amp", "schedule", "lr")}
    automatic = {"lr": "auto"} if settings["lr"] == "auto" else {}
    return {name: value for name, value in kept.items() if value != usual[name]} | automatic


def prepare(threads: int, deterministic: bool) -> None:
    """Sets what holds for the whole process."""
    import torch

    from fusedopt.cli.checks import use_threads

    use_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)


def _finite(row: Mapping[str, float]) -> bool:
    """Whether the losses of an epoch are; where its last step diverged, only that on the test images is not."""
    return math.isfinite(row["train_loss"]) and math.isfinite(row["test_loss"])
