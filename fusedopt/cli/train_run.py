"""What `fusedopt train` does with data, processes and the run's folder."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from fusedopt.cli.checks import check_images, check_same, earlier_run, usage_errors
from fusedopt.cli.runs import conclude, free_folder, own_folder, taken_back, unusual
from fusedopt.cli.train_parts import Options, Parts
from fusedopt.data import hold_out
from fusedopt.runs.events import EventLog
from fusedopt.runs.recording import Recording
from fusedopt.tasks import full_name
from fusedopt.training import CompileError, Epoch, ProgressBar, RunConfig, RunFolder, make_optimizer, train
from fusedopt.training.auto_lr import find_training_lr
from fusedopt.training.batches import batch_sizes
from fusedopt.training.distributed import World, parallel


class TrainingRun:
    """One run: made, it has read the data and opened the folder; `go` trains and writes the report.

    Args:
        options: of the command.
        parts: what was made of them.
        world: the processes that train together.
        stack: keeps other processes out of the folder until it is left.
    """

    def __init__(self, options: Options, parts: Parts, world: World, stack: ExitStack) -> None:
        self.options, self.parts, self.world = options, parts, world
        self._begin(stack)
        self.arguments: dict[str, Any] = {
            "batch_size": options.batch_size,
            "seed": options.seed,
            "augmentation": parts.augmentation,
            "loss_fn": parts.loss_fn,
            "settings": parts.settings,
        }
        self.network = parallel(parts.model, world, parts.device, fsdp=options.fsdp)
        self.optimizer = parts.optimizer
        if options.fsdp:
            parameters = self.network.parameters()
            self.optimizer = make_optimizer(options.optimizer, parameters, **parts.options, **parts.flags)
        self._set_rate()
        self.events = EventLog(self.folder) if options.tensorboard else None
        self.run, self.recording = self._open()

    def _say(self, line: str) -> None:
        if self.world.main and not self.options.quiet:
            typer.echo(line)

    def _begin(self, stack: ExitStack) -> None:
        """Reads the data, and finds the folder, and what an earlier run left in it."""
        o, world = self.options, self.world
        with world.main_first():
            data = self.parts.task.load(o.data_dir, self._say)
            with usage_errors():
                if o.held_out is not None:
                    data = hold_out(data, o.held_out)
            check_images(self.parts.model, self.parts.augmentation, data, self.parts.device)
        with usage_errors():  # training would say so too, but only after the search for a learning rate
            batch_sizes(self.parts.model, data, o.batch_size, world)
        train_count, test_count = len(data.train_labels), len(data.test_labels)
        self._say(f"{data.name}: {train_count:,} training and {test_count:,} {o.tested} images")
        self._say("normalised with the mean and standard deviation of the training images")
        torch.manual_seed(o.seed)  # of dropout
        name = f"{Path(full_name(o.dataset)).name}-{o.model_name or self.parts.task.model}"
        self.data, self.folder = data, world.agreed(free_folder(name) if o.out is None else o.out)
        with world.main_first():
            if world.main:
                stack.enter_context(own_folder(self.folder))
            self.earlier, self.done = earlier_run(self.folder, resume=o.resume)

    def _set_rate(self) -> None:
        """Takes the learning rate of the options, of the earlier run, or of a range test."""
        o, model = self.options, self.parts.model
        if o.lr == "auto":
            found = None if self.earlier is None else self.earlier.config.optimizer_options.get("lr")
            try:
                found = found or find_training_lr(self.network, self.optimizer, self.data, **self.arguments).suggestion
            except ValueError as error:
                if self.world.main:
                    reason = str(error).partition(";")[0]  # what follows is advice on arguments that are not here
                    text = f"no learning rate found: {reason}; look at the curve of fusedopt find-lr and give --lr"
                    typer.echo(f"fusedopt: {text}", err=True)
                raise typer.Exit(1) from error
            for group in self.optimizer.param_groups:
                group["lr"] = found
        rate = self.parts.options["lr"] = self.optimizer.param_groups[0]["lr"]
        how = f"lr {rate:g}{' (found by a range test)' if o.lr == 'auto' else ''}"
        count = sum(p.numel() for p in model.parameters())
        self._say(f"{type(model).__name__} with {count:,} parameters, {o.optimizer} with {how}, seed {o.seed}")

    def _config(self) -> RunConfig:
        o = self.options
        settings = {"loss": o.loss, "label_smoothing": o.label_smoothing, "lr": o.lr, **asdict(self.parts.settings)}
        return RunConfig.of(
            self.data,
            dataset=full_name(o.dataset),
            model=o.model_name or self.parts.task.model,
            optimizer=o.optimizer,
            optimizer_options=self.parts.options,
            epochs=o.epochs,
            batch_size=o.batch_size,
            seed=o.seed,
            augmentations=o.augmentations,
            held_out=o.held_out,
            schedule=o.schedule,
            amp=o.amp,
            settings=unusual(settings),
        )

    def _open(self) -> tuple[RunFolder, Recording | None]:
        """Begins the run in its folder, or goes on with it."""
        o, config, recording = self.options, self._config(), None
        with self.world.main_first():
            if self.earlier is not None:
                check_same(self.folder, self.earlier.config, config)
            run = RunFolder.prepare(self.folder, config, resume=o.resume)
            if o.record and (o.fsdp or self.world.main):
                recording = Recording(self.folder, self.parts.model, self.done)
            run.config = replace(config, epochs=max([o.epochs, *(int(row["epoch"]) for row in run.rows)]))
        return run, recording

    def _keep(self, epoch: Epoch, trained: nn.Module) -> None:
        if self.world.main:
            self.run.append(epoch.row())
        if epoch.best:
            self.run.save_model(trained)
        if self.events is not None and self.world.main:
            self.events.add(epoch)
        if self.recording is not None:
            self.recording.epoch_over(epoch.number, save=self.world.main)

    def go(self, progress: ProgressBar | None) -> None:
        """Trains, says how it goes, and writes the report."""
        o, world = self.options, self.world
        with usage_errors():
            epochs = train(
                self.network,
                self.optimizer,
                self.data,
                epochs=o.epochs,
                progress=progress,
                on_epoch=self._keep,
                checkpoint_dir=self.folder / "checkpoints",
                resume=o.resume,
                **self.arguments,
            )
        with world.main_first():
            if world.main:
                self.run.save_config()
        if 0 < self.done < o.epochs:
            self._say(f"going on after epoch {self.done} of {o.epochs}")
        elif o.resume and not self.done:
            self._say(f"{self.folder} has no finished epoch to go on from; starting with the first")
        results = self._train(epochs)
        if world.main:
            conclude(self.run, self.data, results, o.tested, self._say, report=not o.no_report)

    def _train(self, epochs: Iterable[Epoch]) -> list[Epoch]:
        """Goes through the epochs and says what came of each; what they were is kept where they break off."""
        results = []
        begun = self.world.main and self.earlier is None
        try:
            with (
                taken_back(self.run) if begun else nullcontext(),
                self.recording.capture if self.recording else nullcontext(),
            ):
                for result in epochs:
                    results.append(result)
                    accuracy = f"{self.options.tested} accuracy {100 * result.test_accuracy:.2f} %"
                    outcome = f"loss {result.train_loss:.4f}, {accuracy}, {result.seconds:.1f} s"
                    self._say(f"epoch {result.number}/{self.options.epochs}: {outcome}")
        except CompileError as error:
            typer.echo(f"fusedopt: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            if self.recording is not None and self.world.main:
                self.recording.save()
            if self.world.main:
                typer.echo(f"fusedopt: interrupted; go on with --out {self.folder} --resume", err=True)
            raise typer.Exit(130) from error
        finally:
            if self.events is not None:
                self.events.close()
        return results
