"""An exponential moving average of a network, weights and buffers."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class ExponentialAverage(AveragedModel):
    """torch's `AveragedModel` as an exponential moving average, whose update never waits for the device.

    The first update copies the network; after n updates the next one moves the average by a share of 1 - d towards it,
    where d is the decay, at first only (1 + n) / (10 + n): the average of a short run does not remember the weights
    that it began with. torch's own update copies a counter to the device at every step, and turns integer buffers, such
    as the number of batches that batch normalisation has seen, into a rounded average; here they are copied.

    Source: `num_updates` of https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage.

    Args:
        model: what is averaged.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.module.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes the model's present weights and buffers into the average."""
        pairs = [
            (mean, value.detach())
            for means, values in (
                (self.module.parameters(), model.parameters()),
                (self.module.buffers(), model.buffers()),
            )
            for mean, value in zip(means, values, strict=True)
        ]
        seen = int(self.n_averaged)  # on the host
        moving = [pair for pair in pairs if seen and pair[0].is_floating_point()]
        if moving:
            share = 1 - min(self.decay, (1 + seen) / (10 + seen))
            torch._foreach_lerp_([mean for mean, _ in moving], [value for _, value in moving], share)
        for mean, value in pairs:
            if not seen or not mean.is_floating_point():
                mean.copy_(value)
        self.n_averaged += 1
