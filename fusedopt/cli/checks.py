"""What `fusedopt train` and others refuse, or say, before they write anything."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fusedopt.data import ImageData
    from fusedopt.data.augmentations import Augmentation
    from fusedopt.training import RunConfig, RunFolder, Settings

# One by default: small networks gain little by more, and the results would depend on the number of cores.
THREADS_HELP = "CPU threads; networks as small as these gain little by more than one."


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns what is wrong with an option's value into a usage error."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def rate_of(text: str | None) -> float | None:
    """Returns the number in --lr; None for auto."""
    if text is None or text == "auto":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--lr takes a number, or auto, not {text!r}") from error


def check_numbers(**options: float | None) -> None:
    """Raises ValueError for an option that is no finite number, or clips to nothing."""
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{option} must be a finite number, not {value}")
        if name == "max_grad_norm" and value is not None and value <= 0:
            raise ValueError(f"{option} must be above 0, not {value:g}")


def check_fsdp(settings: Settings, *, fsdp: bool) -> None:
    """Raises ValueError where --fsdp is given without processes to spread over, or with settings that do not fit."""
    import torch.distributed as dist

    from fusedopt.training.sharded import check_settings

    if fsdp and not (dist.is_available() and dist.is_torchelastic_launched()):
        raise ValueError("--fsdp needs torchrun: torchrun --nproc-per-node=2 -m fusedopt train ... --fsdp")
    if fsdp:
        check_settings(settings)


def check_images(model: nn.Module, augmentation: Augmentation | None, data: ImageData, device: torch.device) -> None:
    """Refuses a network that cannot take the images, by two of them."""
    import torch

    images, labels = data.train_images[:2].to(device).float() / 255, data.train_labels[:2].to(device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if augmentation is not None:
                images, _ = augmentation(images, labels, torch.Generator(device).manual_seed(0))
            model(images)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        text = f"the network cannot take the images ({reason}); give another --augment or --model"
        raise typer.BadParameter(text) from error
    finally:
        model.train(training)


def earlier_run(folder: Path, *, resume: bool) -> tuple[RunFolder | None, int]:
    """Returns the run in a folder, if there is one, and how many epochs its last checkpoint has.

    Raises FileError where there is a run but no `resume`, or where it cannot be gone on with.
    """
    from fusedopt.files import FileError
    from fusedopt.runs.folder import holds_run
    from fusedopt.training import Checkpoint, RunFolder

    paths = Checkpoint(folder / "checkpoints").paths()
    if not resume:
        if paths or holds_run(folder):
            raise FileError(f"{folder}: holds an earlier run; go on with it by --resume, or name another folder")
        return None, 0
    run = RunFolder.open(folder) if holds_run(folder) else None
    rows = [] if run is None else run.rows
    done, logged = _epochs(paths[-1]) if paths else 0, len(rows)
    if any("test_accuracy" not in row for row in rows):
        reason = "a row has no test_accuracy"
        raise FileError(f"{folder}/log.json: damaged, or of another version ({reason}); restore it")
    if rows and not paths:
        raise FileError(f"{folder}: has a log but no checkpoints to go on from; restore them, or name another folder")
    if logged < done:  # a kill between the two leaves one more in the log
        text = f"{done} epochs are in its checkpoints but {logged} in its log"
        raise FileError(f"{folder}: {text}; restore log.json, or name another folder")
    if done and not (folder / "model.pt").exists():
        raise FileError(f"{folder}: has lost its model.pt; restore it, or name another folder")
    return run, done


def _epochs(checkpoint: Path) -> int:
    from fusedopt import files

    try:
        return int(files.load(checkpoint, "checkpoint")["position"]["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise files.FileError(f"{checkpoint}: not the content of a checkpoint; do not trust it") from error


def check_same(folder: Path, earlier: RunConfig, config: RunConfig) -> None:
    """Refuses to go on with other settings than before: `RunFolder.prepare` compares the rest."""
    from fusedopt.files import FileError

    scheduled = config.schedule is not None and earlier.schedule == config.schedule
    before, now = (
        {"dataset": c.dataset, "model": c.model, **c.settings, **({"epochs": c.epochs} if scheduled else {})}
        for c in (earlier, config)
    )
    for name in [*now, *(before.keys() - now.keys())]:
        if before.get(name) != now.get(name):
            values = f"{name} is {before.get(name, 'the default')} there and {now.get(name, 'the default')} here"
            raise FileError(f"{folder}: holds another run ({values}); give the same options, or another folder")


def warn_of_precision(amp: str | None, device: torch.device) -> None:
    """Says that --amp bf16 costs time here, where the processor has no instructions for it."""
    from fusedopt.training.compute import lacks_bfloat16

    if amp == "bf16" and lacks_bfloat16(device) and not int(os.environ.get("RANK", "0")):
        text = f"--amp bf16 on a {device.type} device without instructions for it: slower than without --amp"
        typer.echo(f"fusedopt: {text}", err=True)


def use_threads(threads: int, processes: int = 1) -> None:
    """Sets the number of CPU threads, and says so where all of them, of each process, are more than the cores."""
    import torch

    torch.set_num_threads(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads * processes > cores and not int(os.environ.get("RANK", "0")):
        of = f" in each of {processes} processes" if processes > 1 else ""
        text = f"--threads {threads}{of} on {cores} cores: they wait for each other; fewer are quicker"
        typer.echo(f"fusedopt: {text}", err=True)
