"""Batches of images, and how optimizer steps are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fusedopt.data.images import ImageData
from fusedopt.sharding import reshard
from fusedopt.training.distributed import ALONE, World

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def seeded(factory: Callable[[], T], seed: int) -> T:
    """Calls `factory` under the given seed and restores the global generator, e.g. `seeded(GarmentClassifier, 0)`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return factory()


def batches(
    images: Tensor, labels: Tensor, batch_size: int | Sequence[int], generator: torch.Generator | None = None
) -> Iterator[Batch]:
    """Yields batches of images and labels, the last one smaller where the number does not divide.

    Args:
        images, labels: [N, ...] and [N].
        batch_size: at least 1, or how many each batch has, see `batch_sizes`.
        generator: shuffles; None keeps the order.

    Raises:
        ValueError: the batch size is below 1.
    """
    if isinstance(batch_size, int) and batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, not {batch_size}")
    order = torch.arange(len(labels)) if generator is None else torch.randperm(len(labels), generator=generator)
    for index in torch.split(order, batch_size):  # type: ignore[arg-type]
        yield images[index], labels[index]


def batch_sizes(model: nn.Module, data: ImageData, batch_size: int, world: World = ALONE) -> list[int]:
    """Returns how many images each batch of an epoch has: `batch_size`, the last one those that are left.

    Batch normalisation of features, and whatever else normalises over a batch, cannot be trained on a single image.
    Where a network cannot, and the last batch would leave one to a process, it is joined to the batch before it.

    Args:
        model: float [B, C, H, W] to scores; is left as it is.
        data: its training images are what an epoch consists of.
        batch_size: at least 1, of all processes together.
        world: the processes, each of which gets its share of each batch, see `World.share`.

    Raises:
        ValueError: the batch size is below 1, or the network cannot be trained on one image, and all batches leave one
            to a process.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, not {batch_size}")
    count, least = len(data.train_labels), 2 * world.size
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    if not sizes or sizes[-1] >= least or not _needs_two(model, data):
        return sizes
    if batch_size < least:
        each = f", one for each of {world.size} processes" if world.size > 1 else ""
        what = f"batches of {batch_size} image{'s' * (batch_size > 1)}{each}"
        advice = f"take a batch size of at least {least}"
    elif len(sizes) == 1:
        what = f"the {count} training image{'s' * (count > 1)} that {data.name} holds"
        advice = f"it takes at least {least}"
    else:
        return [*sizes[:-2], sizes[-2] + sizes[-1]]
    raise ValueError(f"{type(model).__name__} cannot be trained on {what}: it normalises over a batch; {advice}")


def _needs_two(model: nn.Module, data: ImageData) -> bool:
    """Whether the network can be trained on two images, but not on one."""
    device = next(model.parameters()).device
    images = data.train_images[:1].to(device).float() / 255
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def takes(batch: Tensor) -> bool:
        try:
            model(batch)
        except ValueError:  # as all of torch's normalisations say it
            return False
        return True

    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.train()
            return not takes(images) and takes(torch.cat([images, images]))
    finally:
        reshard(model)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


class Part(NamedTuple):
    """The part that a batch has in an optimizer step.

    Attributes:
        images: how many of its images count on this process.
        weight: of the batch's mean loss in the loss of the step. Over the batches of a step and, as
            `DistributedDataParallel` has it, the mean over the processes, each image weighs the same.
        first, last: whether it is the first or last batch of its step.
    """

    images: int
    weight: float
    first: bool
    last: bool


def parts(sizes: Sequence[int], accumulate: int, world: World) -> Iterator[Part]:
    """Yields the part of each batch of an epoch.

    Args:
        sizes: of the batches, of all processes together.
        accumulate: batches per step; the last step has those that are left.
        world: the processes.
    """
    for start in range(0, len(sizes), accumulate):
        step = sizes[start : start + accumulate]
        for number, size in enumerate(step, start=1):
            own = world.share_size(size)
            yield Part(own, own * world.size / sum(step), number == 1, number == len(step))
