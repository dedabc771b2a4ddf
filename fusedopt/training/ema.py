"""An exponential moving average of a network, weights and buffers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fusedopt.sharding import local, reshard


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
        _average(pairs, int(self.n_averaged), self.decay)  # on the host
        self.n_averaged += 1

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Hands out the average."""
        yield self.module


class ShardedAverage(nn.Module):
    """`ExponentialAverage` of a model on which `fully_shard` was called, of which there can be no copy.

    Each process averages what it holds. The states are those of `ExponentialAverage`, in DTensors.

    Args:
        model: what is averaged.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        reshard(model)
        self.decay = decay
        self.n_averaged: Tensor
        self.register_buffer("n_averaged", torch.tensor(0))
        self._model = (model,)  # no module of this one
        self._values = [*model.parameters(), *model.buffers()]
        self._means = [local(value.detach()).clone() for value in self._values]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes the present weights and buffers of the model, which is the one it was made of, into the average."""
        _average(self._pairs(), int(self.n_averaged), self.decay)
        self.n_averaged += 1

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Hands out the model, which has the weights and buffers of the average until the end of the block."""
        model = self._model[0]
        self._swap()
        try:
            yield model
        finally:
            self._swap()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # without options
        """Returns the state of an `ExponentialAverage`; with DTensors."""
        with self.applied() as model:
            state = {f"module.{name}": copy.deepcopy(value) for name, value in model.state_dict().items()}
        return {"n_averaged": self.n_averaged, **state}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Takes over what `state_dict` returned."""
        self.n_averaged.copy_(state_dict["n_averaged"])
        state = {name.removeprefix("module."): value for name, value in state_dict.items() if name != "n_averaged"}
        with self.applied() as model:
            return model.load_state_dict(state)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [(mean, local(value.detach())) for mean, value in zip(self._means, self._values, strict=True)]

    @torch.no_grad()
    def _swap(self) -> None:
        reshard(self._model[0])  # what was gathered is of the values from before
        for mean, value in self._pairs():
            kept = mean.clone()
            mean.copy_(value)
            value.copy_(kept)


def _average(pairs: list[tuple[Tensor, Tensor]], seen: int, decay: float) -> None:
    """Moves each first tensor towards the second, or to it: the first time, and where numbers are whole."""
    moving = [pair for pair in pairs if seen and pair[0].is_floating_point()]
    if moving:
        share = 1 - min(decay, (1 + seen) / (10 + seen))
        torch._foreach_lerp_([mean for mean, _ in moving], [value for _, value in moving], share)
    for mean, value in pairs:
        if not seen or not mean.is_floating_point():
            mean.copy_(value)
