"""`fusedopt train`: trains a network and leaves a run folder."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fusedopt.cli.checks import usage_errors, warn_of_precision
from fusedopt.cli.errors import one_line_errors
from fusedopt.cli.runs import prepare
from fusedopt.training.optimizers import OPTIMIZERS

_learning, _speed, _run = (partial(typer.Option, rich_help_panel=panel) for panel in ("Learning", "Speed", "Run"))
_MOMENTUM = [f"{name} ({entry.momentum:g})" for name, entry in OPTIMIZERS.items() if entry.momentum is not None]


def train(
    dataset: Annotated[
        str,
        typer.Argument(
            help="fashion-mnist, cifar10, rps: Rock-Paper-Scissors, rps-photos, hands: drawn on the spot; "
            "or a folder of your own with a folder of images for each class."
        ),
    ],
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model", help="lenet, lenet-bn, lecture-mlp, mlp3, cnn2, resnet9, ...; each data set has its own."
        ),
    ] = None,
    optimizer: Annotated[
        str,
        typer.Option(help=f"{', '.join(OPTIMIZERS)}; torch.adamw, ... for PyTorch's."),
    ] = "adamw",
    lr: Annotated[
        str | None, typer.Option(help="Learning rate, or auto to find one first; each optimizer has its default.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help=f"For {', '.join(_MOMENTUM)}.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="By default the optimizer's own.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    augment: Annotated[str, typer.Option(help="Augmentations, e.g. crop,flip,cutout; see show-augmentations.")] = "",
    held_out: Annotated[
        float | None, typer.Option(help="Share of the training images to test on, in place of the test images.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the weights, and of order and augmentation of the images.")
    ] = 0,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the data set's folder, read in place; by default FUSEDOPT_DATA, else a download."
        ),
    ] = None,
    loss: Annotated[str, _learning(help="cross-entropy, mae, mse, bce, weighted-bce.")] = "cross-entropy",
    label_smoothing: Annotated[float, _learning(min=0, max=1, help="Share spread over all classes.")] = 0.0,
    schedule: Annotated[str | None, _learning(help="one-cycle, cosine, ...: see plot-schedule; --lr at most.")] = None,
    min_lr: Annotated[float | None, _learning(help="Of schedules with a lowest rate; by default --lr / 10.")] = None,
    max_grad_norm: Annotated[float | None, _learning(help="Clip the norm of all gradients.")] = None,
    accumulate: Annotated[int, _learning(help="Batches per optimizer step.")] = 1,
    ema: Annotated[float | None, _learning(help="Decay of an average of the weights to keep, e.g. 0.999.")] = None,
    patience: Annotated[int | None, _learning(help="Stop after so many epochs without a better one.")] = None,
    device: Annotated[str, _speed(help="cpu, cuda, cuda:1, ...; auto is a GPU if there is one.")] = "auto",
    amp: Annotated[str | None, _speed(help="Mixed precision: bf16 or fp16.")] = None,
    channels_last: Annotated[bool, _speed("--channels-last", help="The memory layout that GPUs like.")] = False,
    compile_model: Annotated[bool, _speed("--compile", help="Train through torch.compile.")] = False,
    cuda_graph: Annotated[bool, _speed("--cuda-graph", help="Replay the whole step from a CUDA graph.")] = False,
    no_onednn: Annotated[
        bool, _speed("--no-onednn", help="PyTorch's own CPU kernels: quicker for batches of a few small images.")
    ] = False,
    fsdp: Annotated[bool, _speed("--fsdp", help="Spread weights and states over the processes of torchrun.")] = False,
    threads: Annotated[
        int, _speed(min=1, max=1024, help="CPU threads; networks as small as these gain little by more.")
    ] = 1,
    out: Annotated[Path | None, _run(help="The run's folder; by default runs/DATASET-MODEL-1, -2, ...")] = None,
    resume: Annotated[bool, _run("--resume", help="Go on with the run in --out, with the same options.")] = False,
    tensorboard: Annotated[bool, _run("--tensorboard", help="Write events into the run's folder.")] = False,
    record: Annotated[bool, _run("--capture", help="Record gradients and weights, and draw them.")] = False,
    deterministic: Annotated[bool, _run("--deterministic", help="Repeat bit for bit on a GPU too.")] = False,
    no_report: Annotated[bool, _run("--no-report", help="Leave out the pictures and report.html.")] = False,
    quiet: Annotated[bool, _run("--quiet", help="Print the result only.")] = False,
) -> None:
    """Train a network, leave log, weights, checkpoints and a report in a folder, and say what optimizer.step() took.

    On several GPUs or processes: torchrun --nproc-per-node=4 -m fusedopt train ...
    """
    given = dict(locals())  # all that is above, by name

    from fusedopt.cli.train_parts import Options, make_parts
    from fusedopt.cli.train_run import TrainingRun
    from fusedopt.training import ProgressBar
    from fusedopt.training.distributed import process_group

    if resume and out is None:
        raise typer.BadParameter("--resume needs --out, the folder of the run to go on with")
    options = Options(**given)
    with one_line_errors():
        progress = None if quiet else ProgressBar()
        with usage_errors():
            parts = make_parts(options)
        warn_of_precision(amp, parts.device)
        prepare(threads, deterministic)
        with process_group(parts.device) as world, ExitStack() as stack:
            TrainingRun(options, parts, world, stack).go(progress)
