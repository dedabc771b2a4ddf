"""`fusedopt train`: trains a network and leaves a run folder."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusedopt.cli.checks import (
    check_fsdp,
    check_images,
    check_numbers,
    check_same,
    earlier_run,
    rate_of,
    usage_errors,
)
from fusedopt.cli.errors import one_line_errors
from fusedopt.cli.runs import conclude, free_folder, own_folder, prepare, taken_back, unusual
from fusedopt.runs.recording import Recording

if TYPE_CHECKING:
    from torch import nn

    from fusedopt.training import Epoch

_learning, _speed, _run = (partial(typer.Option, rich_help_panel=panel) for panel in ("Learning", "Speed", "Run"))


def train(
    dataset: Annotated[
        str,
        typer.Argument(
            help="fashion-mnist, cifar10, rps: Rock-Paper-Scissors, rps-photos, or hands: drawn on the spot."
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
        typer.Option(
            help="sgd, rmsprop, adagrad, adam, adamw, lamb, swats, delta-bar-delta; torch.adamw, ... for PyTorch's."
        ),
    ] = "adamw",
    lr: Annotated[
        str | None, typer.Option(help="Learning rate, or auto to find one first; each optimizer has its default.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="For sgd, delta-bar-delta (0.9) and rmsprop (0).")] = None,
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
    import torch

    from fusedopt.data import compose, hold_out
    from fusedopt.runs.events import EventLog
    from fusedopt.tasks import find_task
    from fusedopt.training import (
        CompileError,
        ProgressBar,
        RunConfig,
        RunFolder,
        Settings,
        make_loss,
        make_optimizer,
        seeded,
    )
    from fusedopt.training import train as training
    from fusedopt.training.auto_lr import find_training_lr
    from fusedopt.training.batches import batch_sizes
    from fusedopt.training.distributed import ALONE, choose_device, parallel, process_group
    from fusedopt.training.graph import check_capture

    if resume and out is None:
        raise typer.BadParameter("--resume needs --out, the folder of the run to go on with")
    ours = not optimizer.startswith("torch.")
    with one_line_errors():
        progress = None if quiet else ProgressBar()
        with usage_errors():
            numbers = {"lr": rate_of(lr), "momentum": momentum, "weight_decay": weight_decay}
            shares = {"held_out": held_out, "label_smoothing": label_smoothing, "ema": ema}
            check_numbers(**numbers, **shares, min_lr=min_lr, max_grad_norm=max_grad_norm)
            settings = Settings(
                accumulate=accumulate,
                max_grad_norm=None if ours else max_grad_norm,  # fusedopt's optimizers clip within their step
                amp=amp,
                channels_last=channels_last,
                compile=compile_model,
                cuda_graph=cuda_graph,
                onednn=not no_onednn,
                ema=ema,
                schedule=schedule,
                min_lr=min_lr,
                patience=patience,
            )
            check_fsdp(settings, fsdp=fsdp)
            where = choose_device(device)
            task = find_task(dataset)
            model = seeded(lambda: task.network(model_name), seed).to(where)
            if channels_last:  # before the processes agree on how gradients are laid out
                model.to(memory_format=torch.channels_last)
            augmentation = compose(filter(None, augment.split(",")), task.classes) if augment else None
            if label_smoothing and loss != "cross-entropy":
                raise ValueError(f"--label-smoothing belongs to cross-entropy, not to {loss}")
            loss_fn = make_loss(loss, **({"label_smoothing": label_smoothing} if label_smoothing else {}))
            options: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
            if ours and max_grad_norm is not None:
                options["max_grad_norm"] = max_grad_norm
            flags = {"fused": True} if ours and amp == "fp16" else {}  # the scale is taken in the step, without waiting
            if cuda_graph:
                options["capturable"] = True
                if record:
                    raise ValueError("--capture cannot look into a CUDA graph; leave out one of them")
            try:
                chosen = make_optimizer(optimizer, model.parameters(), **options, **flags)
            except TypeError as error:  # some of torch's have no capturable
                raise ValueError(f"{optimizer} cannot be captured in a CUDA graph; take one of fusedopt's") from error
            if cuda_graph:  # training would say so too, but only after the download
                check_capture(settings, where, chosen, ALONE)
        prepare(threads, deterministic)

        with process_group(where) as world, ExitStack() as stack:

            def say(line: str) -> None:
                if world.main and not quiet:
                    typer.echo(line)

            with world.main_first():
                data = task.load(data_dir, say)
                with usage_errors():
                    if held_out is not None:
                        data = hold_out(data, held_out)
                check_images(model, augmentation, data, where)
            with usage_errors():  # training would say so too, but only after the search for a learning rate
                batch_sizes(model, data, batch_size, world)
            tested = "test" if held_out is None else "held-out"
            say(f"{data.name}: {len(data.train_labels):,} training and {len(data.test_labels):,} {tested} images")
            say("normalised with the mean and standard deviation of the training images")

            torch.manual_seed(seed)  # of dropout
            folder = world.agreed(free_folder(f"{dataset}-{model_name or task.model}") if out is None else out)
            with world.main_first():
                if world.main:
                    stack.enter_context(own_folder(folder))
                earlier, done = earlier_run(folder, resume=resume)
            name, parameters = type(model).__name__, sum(p.numel() for p in model.parameters())
            network = parallel(model, world, where, fsdp=fsdp)
            if fsdp:
                chosen = make_optimizer(optimizer, network.parameters(), **options, **flags)
            arguments: dict[str, Any] = {
                "batch_size": batch_size,
                "seed": seed,
                "augmentation": augmentation,
                "loss_fn": loss_fn,
                "settings": settings,
            }
            if lr == "auto":
                found = None if earlier is None else earlier.config.optimizer_options.get("lr")
                try:
                    found = found or find_training_lr(network, chosen, data, **arguments).suggestion
                except ValueError as error:
                    if world.main:
                        reason = str(error).partition(";")[0]  # what follows is advice on arguments that are not here
                        text = f"no learning rate found: {reason}; look at the curve of fusedopt find-lr and give --lr"
                        typer.echo(f"fusedopt: {text}", err=True)
                    raise typer.Exit(1) from error
                for group in chosen.param_groups:
                    group["lr"] = found
            rate = options["lr"] = chosen.param_groups[0]["lr"]
            how = f"lr {rate:g}{' (found by a range test)' if lr == 'auto' else ''}"
            say(f"{name} with {parameters:,} parameters, {optimizer} with {how}, seed {seed}")
            config = RunConfig.of(
                data,
                dataset=dataset,
                model=model_name or task.model,
                optimizer=optimizer,
                optimizer_options=options,
                epochs=epochs,
                batch_size=batch_size,
                seed=seed,
                augmentations=tuple(filter(None, augment.split(","))),
                held_out=held_out,
                schedule=schedule,
                amp=amp,
                settings=unusual({"loss": loss, "label_smoothing": label_smoothing, "lr": lr, **asdict(settings)}),
            )
            events = EventLog(folder) if tensorboard else None

            def keep(epoch: Epoch, trained: nn.Module) -> None:
                if world.main:
                    run.append(epoch.row())
                if epoch.best:
                    run.save_model(trained)
                if events is not None and world.main:
                    events.add(epoch)
                if recording is not None:
                    recording.epoch_over(epoch.number, save=world.main)

            with world.main_first():
                if earlier is not None:
                    check_same(folder, earlier.config, config)
                run = RunFolder.prepare(folder, config, resume=resume)
                recording = Recording(folder, model, done) if record and (fsdp or world.main) else None
                run.config = replace(config, epochs=max([epochs, *(int(row["epoch"]) for row in run.rows)]))
            with usage_errors():
                epochs_to_come = training(
                    network,
                    chosen,
                    data,
                    epochs=epochs,
                    progress=progress,
                    on_epoch=keep,
                    checkpoint_dir=folder / "checkpoints",
                    resume=resume,
                    **arguments,
                )
            with world.main_first():
                if world.main:
                    run.save_config()
            if 0 < done < epochs:
                say(f"going on after epoch {done} of {epochs}")
            elif resume and not done:
                say(f"{folder} has no finished epoch to go on from; starting with the first")
            results = []
            try:
                begun = world.main and earlier is None
                with (
                    taken_back(run) if begun else nullcontext(),
                    recording.capture if recording else nullcontext(),
                ):
                    for result in epochs_to_come:
                        results.append(result)
                        outcome = f"loss {result.train_loss:.4f}, {tested} accuracy {100 * result.test_accuracy:.2f} %"
                        say(f"epoch {result.number}/{epochs}: {outcome}, {result.seconds:.1f} s")
            except CompileError as error:
                typer.echo(f"fusedopt: {error}", err=True)
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                if recording is not None and world.main:
                    recording.save()
                if world.main:
                    typer.echo(f"fusedopt: interrupted; go on with --out {folder} --resume", err=True)
                raise typer.Exit(130) from error
            finally:
                if events is not None:
                    events.close()
            if world.main:
                conclude(run, data, results, tested, say, report=not no_report)
