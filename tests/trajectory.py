"""Two optimizers, compared step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fusedopt.data.images import ImageData, Normalize
from fusedopt.training.batches import batch_sizes, batches


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
        ValueError: there are no training images, or the batch size is too small for the network's normalisation.
    """
    if not len(data.train_labels):
        raise ValueError(f"{data.name} holds no training images")
    normalize = Normalize(data.train_images)
    generator, sizes = torch.Generator().manual_seed(seed), batch_sizes(model, data, batch_size)
    trajectory = Trajectory()
    model.train()
    while len(trajectory.losses) < steps:
        for images, labels in batches(data.train_images, data.train_labels, sizes, generator):
            if len(trajectory.losses) == steps:
                break
            optimizer.zero_grad()
            loss = F.cross_entropy(model(normalize(images)), labels)
            torch.autograd.backward(loss)
            trajectory.losses.append(loss.item())
            if keep_gradients:
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                trajectory.gradients.append([gradient.clone() for gradient in gradients])
            optimizer.step()
    trajectory.parameters = [p.detach().clone() for p in model.parameters()]
    return trajectory
