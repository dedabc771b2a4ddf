"""The order in which samples are seen, with a position in it that can be saved."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
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

    The orders depend on nothing but the seed. A loader draws a seed for its workers whenever it starts them: at each
    iteration, or with `persistent_workers` at the first one only. From the sampler's generator, which each epoch seeds
    anew, a run that is resumed draws the same one, and nothing else follows from it. Without a generator a loader takes
    it from torch's global one, of which a run that is resumed within an epoch has then drawn one number more: it warns.

    Args:
        size: number of samples, at least 1.
        seed: of the orders, which are `torch.randperm`s from one generator.
        shuffle: whether there is an order other than 0, 1, ...
        drop_last: as the loader's: an epoch is over when fewer samples are left than the last step trained on.

    Attributes:
        epoch: number of epochs that are over.
        position: number of samples of the present epoch that have been trained on.
        generator: for the loader.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(self, size: int, *, seed: int = 0, shuffle: bool = True, drop_last: bool = False) -> None:
        if size < 1:
            raise ValueError(f"there must be at least 1 sample, not {size}")
        self.size, self.seed, self.shuffle, self.drop_last = size, seed, shuffle, drop_last
        self.epoch = self.position = 0
        self.generator = torch.Generator()
        self._orders = torch.Generator().manual_seed(seed)
        self._stuck = False
        self._resumed: Tensor | None = None  # the global generator's state, where an epoch goes on in the middle
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._start = self._orders.get_state()
        order = torch.randperm(self.size, generator=self._orders) if self.shuffle else torch.arange(self.size)
        self._order = order
        entropy = np.random.SeedSequence((self.seed % 2**64, self.epoch))
        self.generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

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
        if self._stuck and self.position:
            raise RuntimeError(
                f"the loader has left out the last {len(self)} samples of this epoch; make the sampler with "
                f"drop_last=True, as the loader, or go on to the next epoch with sampler.advance({len(self)})"
            )
        if self._stuck:
            small = f", and take batches of at most {self.size}, all samples there are" if self.drop_last else ""
            text = f"this epoch has been seen already; call sampler.advance(len(batch)) after each step{small}"
            raise RuntimeError(text)
        self._check_global_generator()
        order = self._order
        yield from self.remaining().tolist()
        if self._order is order:  # the loader may ask for more only when the next epoch has begun
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
        if self.position == self.size or (self.drop_last and len(self) < count):
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
        self._orders.set_state(state["generator"])
        self.epoch, self.position, self._stuck = state["epoch"], state["position"], False
        self._resumed = torch.get_rng_state() if self.position else None
        self._begin_epoch()

    def _check_global_generator(self) -> None:
        """Warns where a loader has drawn its seed from torch's global generator since an epoch was resumed."""
        if self._resumed is None:
            return
        drawn = torch.Generator()
        drawn.set_state(self._resumed)
        self._resumed = None
        torch.empty((), dtype=torch.int64).random_(generator=drawn)
        if torch.equal(drawn.get_state(), torch.get_rng_state()):
            text = (
                "this epoch goes on in the middle, and the loader has drawn its seed from torch's global generator: "
                "dropout and the like will differ from a run without the interruption; give the loader "
                "generator=sampler.generator"
            )
            warnings.warn(text, stacklevel=3)
