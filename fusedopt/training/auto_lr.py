"""The learning rate for a training, found before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fusedopt.data.augmentations import Augmentation
from fusedopt.data.images import ImageData, Normalize
from fusedopt.data.loader import BatchLoader, BatchTransform
from fusedopt.lr_finder import LRFinderResult, find_lr
from fusedopt.runs.sampler import ResumableSampler
from fusedopt.sharding import is_sharded
from fusedopt.training.batches import Batch, Loss, batch_sizes
from fusedopt.training.compute import Precision
from fusedopt.training.distributed import World
from fusedopt.training.evaluate import device_of
from fusedopt.training.settings import PLAIN, Settings
from fusedopt.training.sharded import check_sharded


class _Passes:
    """The batches of a training, epoch after epoch: a pass over the images each time it is asked."""

    def __init__(self, loader: BatchLoader, sampler: ResumableSampler, world: World, sizes: list[int]) -> None:
        self._loader, self._sampler, self._world, self._sizes = loader, sampler, world, sizes

    def __iter__(self) -> Iterator[Batch]:
        order = self._world.share(self._sampler.remaining(), self._sizes)
        seed = self._sampler.epoch * self._world.size + self._world.rank
        self._sampler.advance(len(self._sampler))
        return self._loader.batches(order, seed, self._world.share_sizes(self._sizes))


def find_training_lr(
    model: nn.Module,
    optimizer: Optimizer,
    data: ImageData,
    *,
    batch_size: int = 64,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    loss_fn: Loss = F.cross_entropy,
    settings: Settings = PLAIN,
    **options: Any,
) -> LRFinderResult:
    """Runs `fusedopt.find_lr` as `train` would train with the same arguments, and puts everything back.

        result = find_training_lr(model, optimizer, data)
        for group in optimizer.param_groups:
            group["lr"] = result.suggestion
        for epoch in train(model, optimizer, data, epochs=10): ...

    Of the settings it follows precision and accumulation.

    Args:
        model, optimizer, data, batch_size, seed, augmentation, loss_fn, settings: as in `train`.
        options: further arguments of `find_lr`, such as `end_lr`.

    Returns:
        What was found; `suggestion` raises where the curve supports none, and says why.

    Raises:
        ValueError: there are no training images, the batch size is below 1 or too small for the network, or an option
            is wrong.
    """
    check_sharded(model, optimizer)
    device, world = device_of(model), World.of(model)
    precision = Precision(settings.amp, device)
    transform = BatchTransform(Normalize(data.train_images), augmentation)
    images_and_labels = data.train_images, data.train_labels
    loader = BatchLoader(images_and_labels, batch_size // world.size, transform, device=device)
    sampler = ResumableSampler(len(data.train_labels), seed=seed)
    network = model.module if isinstance(model, DistributedDataParallel) else model
    sizes = batch_sizes(network, data, batch_size, world)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        images, targets = batch
        return loss_fn(precision(network, images), targets)

    return find_lr(
        model,
        optimizer,
        None,
        _Passes(loader, sampler, world, sizes),
        closure=loss,
        accumulation_steps=settings.accumulate,
        process_group=dist.group.WORLD if is_sharded(model) else None,  # else it is that of the model
        grad_scaler=precision.scaler if precision.scaler.is_enabled() else None,
        **options,
    )
