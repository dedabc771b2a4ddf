"""The training loop of the examples.

Weights come from one seeded generator and the order of the images from another, so two optimizers trained with the
same seed start from identical weights and see identical batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fusedopt.data.augmentations import Augmentation
from fusedopt.data.images import ImageData, Normalize
from fusedopt.data.loader import BatchLoader, BatchTransform
from fusedopt.optim import refuse_in_backward
from fusedopt.runs.checkpoint import Checkpoint
from fusedopt.runs.epoch import Epoch
from fusedopt.runs.sampler import ResumableSampler
from fusedopt.schedulers.named import Schedule
from fusedopt.sharding import is_sharded
from fusedopt.training.batches import Batch, Loss, batch_sizes, parts
from fusedopt.training.compute import Precision, compile_errors, without_onednn
from fusedopt.training.distributed import World
from fusedopt.training.ema import ExponentialAverage, ShardedAverage
from fusedopt.training.evaluate import device_of, evaluate
from fusedopt.training.graph import GraphedStep, check_capture
from fusedopt.training.metrics import EarlyStopping, Metrics, Stopwatch
from fusedopt.training.progress import Progress
from fusedopt.training.settings import PLAIN, Settings
from fusedopt.training.sharded import check_settings, check_sharded
from fusedopt.training.step import Step

OnEpoch = Callable[[Epoch, nn.Module], None]
"""Is called after each epoch with its results and the network that they are of."""


def train(
    model: nn.Module,
    optimizer: Optimizer,
    data: ImageData,
    *,
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    loss_fn: Loss = F.cross_entropy,
    settings: Settings = PLAIN,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
) -> Iterator[Epoch]:
    """Trains, by default with cross-entropy; yields the results of each epoch as it ends.

    Images are augmented and normalised batch by batch where the model is, with mean and standard deviation of the
    training images. Nothing waits for a GPU within an epoch.

    A model in `DistributedDataParallel` is trained by all of its processes, which share each batch: without
    augmentation, dropout and batch normalisation the result is that of one process, to rounding. So is one on which
    `torch.distributed.fsdp.fully_shard` was called, last on the whole of it, before its optimizer was made. Checkpoints
    are the same either way, and for any number of processes.

    Args:
        model: float [B, C, H, W] to scores [B, classes]; left in evaluation mode.
        optimizer: over the model's parameters.
        data: images and labels.
        epochs: number of passes over the training images.
        batch_size: images per batch, of all processes together; what is left over may be joined to the last one, see
            `batch_sizes`.
        seed: of the order of the images and of the augmentation.
        augmentation: of the training images; None trains on them as they are.
        loss_fn: takes scores [B, classes] and labels int64 [B], or probabilities [B, classes] where the augmentation
            mixes images; returns the mean loss of the batch.
        settings: mixed precision, schedule, average of the weights and so on.
        progress: wraps the batches of each epoch.
        on_epoch: to keep results, and a copy of the network where `Epoch.best` says so: of the model, or with
            `settings.ema` of the average, both of which go on changing. Comes before the epoch's checkpoint, so that no
            kill can lose it: an epoch that is trained again is reported again. Called by the main process only, but
            with a sharded model by all, which has the average's weights meanwhile: reading shards takes all processes,
            as `RunFolder.save_model` does.
        checkpoint_dir: the folder for a checkpoint after each epoch; None saves none.
        resume: go on after the last epoch in `checkpoint_dir`, and yield only those that follow. With the same
            arguments as before, the weights come out bit for bit as without the interruption. The checkpoint is
            loaded at once, before the first epoch is asked for.

    Raises:
        fusedopt.files.FileError: a checkpoint cannot be written or loaded.
        fusedopt.training.CompileError: `torch.compile` does not work here.
        ValueError: there are no training images, the batch size is below 1, cannot be shared by the processes or is
            too small for the network's normalisation, or the settings do not fit the optimizer, the device or each
            other.
        fusedopt.training.distributed.MainFailedError: the main process could not begin, and says why.
    """
    training = _Training(model, optimizer, data, epochs, batch_size, seed, augmentation, loss_fn, settings)
    checkpoint = None if checkpoint_dir is None else Checkpoint(checkpoint_dir, **training.state())
    if checkpoint is not None:
        training.begin(checkpoint, resume)
    return training.run(progress, on_epoch, checkpoint)


class _Training:
    """The pieces of a training, put together."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data: ImageData,
        epochs: int,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None,
        loss_fn: Loss,
        settings: Settings,
    ) -> None:
        self.model, self.optimizer, self.data, self.loss_fn, self.settings = model, optimizer, data, loss_fn, settings
        self.epochs, self.seed = epochs, seed
        self.world = World.of(model)
        self.network = model.module if isinstance(model, DistributedDataParallel) else model
        self.device, self.sharded = device_of(model), is_sharded(model)
        check_sharded(model, optimizer)
        if settings.accumulate > 1 or settings.max_grad_norm is not None or settings.amp == "fp16":
            refuse_in_backward(optimizer, "training with accumulate, max_grad_norm or fp16")
        if batch_size % self.world.size:
            raise ValueError(f"a batch of {batch_size} images cannot be shared by {self.world.size} processes evenly")
        if self.sharded:
            check_settings(settings)
        if settings.cuda_graph:
            check_capture(settings, self.device, optimizer, self.world)

        self.normalize = Normalize(data.train_images)
        self.sampler = ResumableSampler(len(data.train_labels), seed=seed)
        self.loader = BatchLoader(
            (data.train_images, data.train_labels),
            batch_size // self.world.size,
            BatchTransform(self.normalize, augmentation),
            device=self.device,
        )
        self.sizes = batch_sizes(self.network, data, batch_size, self.world)
        self.steps_per_epoch = math.ceil(len(self.sizes) / settings.accumulate)
        self.schedule = None
        if settings.schedule is not None:
            steps = epochs * self.steps_per_epoch
            self.schedule = Schedule(settings.schedule, optimizer, steps, settings.min_lr, captured=settings.cuda_graph)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        average = ShardedAverage if self.sharded else ExponentialAverage
        self.ema = None if settings.ema is None else average(self.network, settings.ema)
        self.stopping = EarlyStopping(settings.patience)
        self.precision = Precision(settings.amp, self.device, cache=not settings.cuda_graph)
        self.stopwatch = None if settings.cuda_graph else Stopwatch(self.device)
        step = Step(
            cast(nn.Module, torch.compile(model)) if settings.compile else model,
            optimizer,
            loss_fn,
            self.precision,
            settings.max_grad_norm,
            self.stopwatch,
        )
        self.step = GraphedStep(step) if settings.cuda_graph else step

    def begin(self, checkpoint: Checkpoint, resume: bool) -> None:
        """Loads where an earlier run left off, or finds out that the folder can be used, not after an epoch only."""
        with self.world.main_first():
            if resume:
                checkpoint.load()
        self.world.wait()  # until all have loaded what the main process may now replace
        states = checkpoint.states() if self.sharded else None  # which takes all processes
        with self.world.main_first():
            if self.sampler.epoch == 0 and self.world.main:
                checkpoint.save(epoch=0, step=0, states=states)

    def run(
        self, progress: Progress | None, on_epoch: OnEpoch | None, checkpoint: Checkpoint | None
    ) -> Iterator[Epoch]:
        """Trains epoch after epoch, from where a checkpoint left off."""
        while self.sampler.epoch < self.epochs and not self.stopping.over:
            epoch = self.train_epoch(progress)
            if on_epoch is not None and (self.sharded or self.world.main):
                with self.evaluated() as network:
                    on_epoch(epoch, network)
            if checkpoint is not None:
                states = checkpoint.states() if self.sharded else None
                if self.world.main:
                    steps = self.sampler.epoch * self.steps_per_epoch
                    checkpoint.save(epoch=self.sampler.epoch, step=steps, metric=epoch.test_accuracy, states=states)
            yield epoch

    def train_epoch(self, progress: Progress | None) -> Epoch:
        """Trains on every image once, then evaluates."""
        count = len(self.data.train_labels)
        order, seed = self.world.share(self.sampler.remaining(), self.sizes), self.epoch_seed()
        plan = list(parts(self.sizes, self.settings.accumulate, self.world))
        metrics = Metrics(self.device, sum(part.images for part in plan))
        batches: Iterable[Batch] = self.loader.batches(order, seed, self.world.share_sizes(self.sizes))
        if progress is not None and self.world.main:
            batches = progress(batches, len(plan), metrics)
        if self.world.size > 1:
            torch.manual_seed(seed)  # of dropout: another on each process, and the same again after an interruption
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.model.train()
        start = perf_counter()
        with (
            compile_errors() if self.settings.compile else nullcontext(),
            nullcontext() if self.settings.onednn else without_onednn(),
        ):
            for (images, targets), part in zip(batches, plan, strict=True):
                if self.settings.channels_last:
                    images = images.to(memory_format=torch.channels_last)
                loss, scores = self.step(images, targets, part)
                metrics.add(loss, scores, targets, part.images)
                if part.last:
                    if self.schedule is not None:
                        self.schedule.advance()
                    if self.ema is not None:
                        self.ema.update_parameters(self.network)
        metrics.over(self.world)
        train_loss, train_accuracy = metrics.loss, metrics.accuracy  # waits for the device
        seconds = perf_counter() - start

        # Each process has had batch statistics of its own.
        self.world.same(self.network.buffers())
        with self.evaluated() as network:
            if self.ema is not None:
                self.world.same(network.buffers())
            test = evaluate(
                network, self.data.test_images, self.data.test_labels, self.normalize, self.loss_fn, self.world
            )
        self.model.eval()
        self.sampler.advance(count)
        return Epoch(
            number=self.sampler.epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            lr=lr,
            seconds=seconds,
            step_seconds=math.nan if self.stopwatch is None else self.stopwatch.seconds(),
            images_per_second=count / seconds,
            best=self.stopping.update(test.accuracy),
        )

    def evaluated(self) -> AbstractContextManager[nn.Module]:
        """Hands out the network to keep."""
        return nullcontext(self.network) if self.ema is None else self.ema.applied()

    def epoch_seed(self) -> int:
        """An epoch has a seed of its own, so that a run which goes on there sees what it would have seen."""
        rank = [self.world.rank] if self.world.rank else []
        entropy = (self.seed % 2**64, self.sampler.epoch, *rank)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        state = {
            "model": self.network,
            "optimizer": self.optimizer,
            "sampler": self.sampler,
            "stopping": self.stopping,
            "schedule": self.schedule,
            "ema": self.ema,
            "scaler": self.precision.scaler if self.precision.scaler.is_enabled() else None,
        }
        return {name: value for name, value in state.items() if value is not None}
