"""An exponential moving average of a network, weights and buffers."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ExponentialAverage(AveragedModel):
    """torch's `AveragedModel` as an exponential moving average, whose update never waits for the device.

    The first update copies the network; each further one moves the average by a share of 1 - decay towards it. torch's
    own update copies a counter to the device at every step, and turns integer buffers, such as the number of batches
    that batch normalisation has seen, into a rounded average; here they are copied.

    Args:
        model: what is averaged.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(model, multi_avg_fn=move, use_buffers=True)
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
        moving = [
            pair for pair in pairs if self.n_averaged and pair[0].is_floating_point()
        ]  # the counter is on the host
        if moving and self.multi_avg_fn is not None:
            self.multi_avg_fn([mean for mean, _ in moving], [value for _, value in moving], self.n_averaged)
        for mean, value in pairs:
            if not self.n_averaged or not mean.is_floating_point():
                mean.copy_(value)
        self.n_averaged += 1
