"""The order in which samples are seen, with a position in it that can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler


class ResumableSampler(Sampler[int]):
    """Every sample once per epoch, in a new order each time, from any position on.

    A loader may fetch samples long before they are trained on, so that only the training loop knows the position: it
    calls `advance` after each step, and saves the sampler with the rest.

        sampler = ResumableSampler(len(dataset), seed=0)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler, generator=sampler.generator)
        for inputs, labels in loader:
            ...
            sampler.advance(len(labels))

    A loader draws a seed for its workers whenever an iteration begins. Without a generator it takes it from the global
    one, and a run that is resumed in the middle of an epoch has drawn one number more; from the sampler's, which goes
    back to the beginning of the epoch with it, it draws the same seed again.

    Args:
        size: number of samples, at least 1.
        seed: of the orders, which are `torch.randperm`s from one generator.
        shuffle: whether there is an order other than 0, 1, ...

    Attributes:
        epoch: number of epochs that are over.
        position: number of samples of the present epoch that have been trained on.
        generator: what the orders are drawn from.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(self, size: int, *, seed: int = 0, shuffle: bool = True) -> None:
        if size < 1:
            raise ValueError(f"there must be at least 1 sample, not {size}")
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.epoch = self.position = 0
        self.generator = torch.Generator().manual_seed(seed)
        self._stuck = False
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._start = self.generator.get_state()
        order = torch.randperm(self.size, generator=self.generator) if self.shuffle else torch.arange(self.size)
        self._order = order

    def remaining(self) -> Tensor:
        """Returns the indices int64 [len(self)] that the present epoch still has to come, in order."""
        return self._order[self.position :]

    def __len__(self) -> int:
        return self.size - self.position

    def __iter__(self) -> Iterator[int]:
        """Yields the indices that the present epoch still has to come.

        Raises:
            RuntimeError: they have all been yielded before, and `advance` has not been called since.
        """
        if self._stuck:
            raise RuntimeError("this epoch has been seen already; call sampler.advance(len(batch)) after each step")
        yield from self.remaining().tolist()
        self._stuck = True

    def advance(self, count: int) -> None:
        """Notes that `count` more samples have been trained on; after the last one, the next epoch begins.

        Raises:
            ValueError: the epoch does not have so many more.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"cannot advance by {count} samples: the epoch has {len(self)} left")
        self._stuck = self._stuck and not count
        self.position += count
        if self.position == self.size:
            self.epoch, self.position = self.epoch + 1, 0
            self._begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, and what the orders from this epoch on are made from."""
        names = ("size", "seed", "shuffle", "epoch", "position")
        return {"generator": self._start, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was saved.

        Raises:
            ValueError: it was saved with another size, seed or shuffle.
        """
        for name in ("size", "seed", "shuffle"):
            if state[name] != getattr(self, name):
                raise ValueError(f"the sampler was saved with {name}={state[name]}, not {getattr(self, name)}")
        self.generator.set_state(state["generator"])
        self.epoch, self.position, self._stuck = state["epoch"], state["position"], False
        self._begin_epoch()
