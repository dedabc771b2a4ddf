"""Loss, accuracy and predictions on images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusedopt.data.images import Normalize
from fusedopt.sharding import is_sharded, reshard
from fusedopt.training.batches import Loss
from fusedopt.training.distributed import ALONE, World
from fusedopt.training.metrics import Metrics

_CHUNK = 1000  # images


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, normalize: Normalize, loss_fn: Loss, world: World = ALONE
) -> Metrics:
    """Returns mean loss and accuracy over images; leaves the model in evaluation mode.

    Args:
        model: float [B, C, H, W] to scores [B, classes].
        images, labels: uint8 [N, C, H, W] and int64 [N]. Each process takes its share of them.
        normalize: with the statistics of the training images.
        loss_fn: scores and labels to the mean loss of a batch.
        world: the processes that evaluate it together.
    """
    model.eval()
    device = device_of(model)
    own = slice(world.rank, None, world.size)
    metrics = Metrics(device, len(labels))
    chunks = list(zip(torch.split(images[own], _CHUNK), torch.split(labels[own], _CHUNK), strict=True))
    counts = [len(expected) for _, expected in chunks]
    if is_sharded(model):  # its processes gather it together: as often as the one with the most images needs it
        spare = math.ceil(math.ceil(len(labels) / world.size) / _CHUNK) - len(chunks)
        chunks, counts = [*chunks, *[(images[:1], labels[:1])] * spare], [*counts, *[0] * spare]
    for (chunk, expected), count in zip(chunks, counts, strict=True):
        scores, targets = model(normalize(chunk.to(device))), expected.to(device)
        metrics.add(loss_fn(scores, targets), scores, targets, count)
    reshard(model)
    return metrics.over(world)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, normalize: Normalize) -> Tensor:
    """Returns the label int64 [N] with the highest score for each uint8 image [N, C, H, W]."""
    model.eval()
    device = device_of(model)
    labels: list[Tensor] = [model(normalize(batch.to(device))).argmax(dim=1) for batch in torch.split(images, _CHUNK)]
    return torch.cat(labels).to(images.device)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, normalize: Normalize) -> float:
    """Returns the share of the images [N, C, H, W] whose predicted label is the one in `labels` [N], 0 to 1."""
    return (predict(model, images, normalize) == labels).float().mean().item()


def device_of(model: nn.Module) -> torch.device:
    """Returns where the model's first parameter is; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
