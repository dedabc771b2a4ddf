"""The training loop of the examples.

Weights come from one seeded generator and the order of the images from another, so two optimizers trained with the
same seed start from identical weights and see identical batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fusedopt.data.augmentations import Augmentation
from fusedopt.data.images import ImageData, Normalize
from fusedopt.data.loader import BatchLoader, BatchTransform
from fusedopt.training.checkpoint import Checkpoint
from fusedopt.training.sampler import ResumableSampler

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[Iterable[Batch], int], Iterable[Batch]]
"""Wraps the batches of an epoch, given their number: for a progress bar."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        loss: mean loss over the training images, each taken when its batch was trained on.
        accuracy: share of the test images classified correctly after the epoch, 0 to 1.
        seconds: wall time of the training, evaluation not included.
        step_seconds: the part of `seconds` that was spent inside `optimizer.step()`.
        number: 1 for the first epoch of the training.
    """

    loss: float
    accuracy: float
    seconds: float
    step_seconds: float
    number: int = 1


@dataclass
class Trajectory:
    """What `record_steps` saw.

    Attributes:
        losses: the loss of each step, before its update.
        gradients: for each step, a copy of each parameter's gradient; empty unless asked for.
        parameters: a copy of the parameters after the last step.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)


def seeded(factory: Callable[[], T], seed: int) -> T:
    """Calls `factory` under the given seed and restores the global generator, e.g. `seeded(GarmentClassifier, 0)`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return factory()


def batches(
    images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator | None = None
) -> Iterator[Batch]:
    """Yields batches of images and labels, the last one smaller where the number does not divide.

    Args:
        images, labels: [N, ...] and [N].
        batch_size: at least 1.
        generator: shuffles; None keeps the order.

    Raises:
        ValueError: the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, not {batch_size}")
    order = torch.arange(len(labels)) if generator is None else torch.randperm(len(labels), generator=generator)
    for index in torch.split(order, batch_size):
        yield images[index], labels[index]


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
    progress: Progress | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
) -> Iterator[Epoch]:
    """Trains, by default with cross-entropy; yields the results of each epoch as it ends.

    Images are augmented and normalised batch by batch where the model is, with mean and standard deviation of the
    training images.

    Args:
        model: float [B, C, H, W] to scores [B, classes]; left in evaluation mode.
        optimizer: over the model's parameters.
        data: images and labels.
        epochs: number of passes over the training images.
        batch_size: images per step.
        seed: of the order of the images and of the augmentation.
        augmentation: of the training images; None trains on them as they are.
        loss_fn: takes scores [B, classes] and labels int64 [B], or probabilities [B, classes] where the augmentation
            mixes images; returns the mean loss of the batch.
        progress: wraps the batches of each epoch.
        checkpoint_dir: the folder for a checkpoint after each epoch; None saves none.
        resume: go on after the last epoch in `checkpoint_dir`, and yield only those that follow. With the same
            arguments as before, the weights come out bit for bit as without the interruption.

    Raises:
        fusedopt.files.FileError: a checkpoint cannot be written or loaded.
        ValueError: there are no training images, or the batch size is below 1.
    """
    normalize = Normalize(data.train_images)
    count = len(data.train_labels)
    sampler = ResumableSampler(count, seed=seed)
    device = _device(model)
    training = data.train_images, data.train_labels
    loader = BatchLoader(training, batch_size, BatchTransform(normalize, augmentation), device=device)
    checkpoint = None
    if checkpoint_dir is not None:
        checkpoint = Checkpoint(checkpoint_dir, model=model, optimizer=optimizer, sampler=sampler)
        if resume:
            checkpoint.load()
        if sampler.epoch == 0:
            checkpoint.save(epoch=0, step=0)  # a folder that cannot be used is found now, not after an epoch
    while sampler.epoch < epochs:
        model.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        step_seconds = 0.0
        start = perf_counter()
        # An epoch has a seed of its own, so that a run which goes on there sees what it would have seen.
        epoch_seed = int(np.random.SeedSequence((seed % 2**64, sampler.epoch)).generate_state(1)[0])
        epoch: Iterable[Batch] = loader.batches(sampler.remaining(), epoch_seed)
        if progress is not None:
            epoch = progress(epoch, -(-count // batch_size))
        for images, targets in epoch:
            loss = _backward(model, optimizer, images, targets, loss_fn)
            before_step = perf_counter()
            optimizer.step()
            step_seconds += perf_counter() - before_step
            total += loss * len(targets)
        seconds = perf_counter() - start
        share = accuracy(model, data.test_images, data.test_labels, normalize)
        sampler.advance(count)
        if checkpoint is not None:
            steps = sampler.epoch * -(-count // batch_size)
            checkpoint.save(epoch=sampler.epoch, step=steps, metric=share)
        yield Epoch(float(total) / count, share, seconds, step_seconds, sampler.epoch)


def record_steps(
    model: nn.Module,
    optimizer: Optimizer,
    data: ImageData,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    keep_gradients: bool = False,
) -> Trajectory:
    """Trains for a number of steps and records what happened, to compare two optimizers step by step.

    Takes as many passes over the training images as the steps need. Arguments as in `train`.

    Raises:
        ValueError: there are no training images.
    """
    if not len(data.train_labels):
        raise ValueError(f"{data.name} holds no training images")
    normalize = Normalize(data.train_images)
    generator = torch.Generator().manual_seed(seed)
    trajectory = Trajectory()
    model.train()
    while len(trajectory.losses) < steps:
        for images, labels in batches(data.train_images, data.train_labels, batch_size, generator):
            if len(trajectory.losses) == steps:
                break
            trajectory.losses.append(float(_backward(model, optimizer, normalize(images), labels)))
            if keep_gradients:
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                trajectory.gradients.append([gradient.clone() for gradient in gradients])
            optimizer.step()
    trajectory.parameters = [p.detach().clone() for p in model.parameters()]
    return trajectory


def _backward(
    model: nn.Module, optimizer: Optimizer, images: Tensor, targets: Tensor, loss_fn: Loss = F.cross_entropy
) -> Tensor:
    optimizer.zero_grad()
    loss = loss_fn(model(images), targets)
    torch.autograd.backward(loss)
    return loss.detach()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, normalize: Normalize) -> Tensor:
    """Returns the label int64 [N] with the highest score for each uint8 image [N, C, H, W]."""
    model.eval()
    device = _device(model)
    labels: list[Tensor] = [model(normalize(batch.to(device))).argmax(dim=1) for batch in torch.split(images, 1000)]
    return torch.cat(labels).to(images.device)


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, normalize: Normalize) -> float:
    """Returns the share of the images [N, C, H, W] whose predicted label is the one in `labels` [N], 0 to 1."""
    return (predict(model, images, normalize) == labels).float().mean().item()
