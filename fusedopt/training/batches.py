"""Batches of images, and how optimizer steps are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fusedopt.training.distributed import World

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


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


def parts(count: int, batch_size: int, accumulate: int, world: World) -> Iterator[Part]:
    """Yields the part of each batch of an epoch.

    Args:
        count: images in the epoch.
        batch_size: of all processes together.
        accumulate: batches per step; the last step has those that are left.
        world: the processes.
    """
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    for start in range(0, len(sizes), accumulate):
        step = sizes[start : start + accumulate]
        for number, size in enumerate(step, start=1):
            own = world.share_size(size)
            yield Part(own, own * world.size / sum(step), number == 1, number == len(step))
