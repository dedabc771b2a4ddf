"""Batches: an endless stream of them from any loader, and their way to the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

if TYPE_CHECKING:
    from fusedopt.runs.sampler import ResumableSampler

BatchFn = Callable[[Any], tuple[Any, Any]]
"""Turns what a loader yields into inputs for the model and labels for the criterion."""


def inputs_and_labels(batch: Any) -> tuple[Any, Any]:
    """The first two items of a tuple or list.

    Raises:
        ValueError: the batch is no such thing.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise ValueError(
            f"Your batch type is not supported: {what}, where (inputs, labels, ...) was expected. Pass "
            f"batch_fn=lambda batch: (inputs, labels), or closure=lambda model, batch: loss with criterion=None."
        )
    inputs, labels, *_ = batch
    return inputs, labels


class DataLoaderIter:
    """Iterates over a loader's batches as (inputs, labels), as torch_lr_finder's does.

    Subclass it and override `inputs_labels_from_batch` for batches of another kind, or pass `batch_fn` instead.
    """

    def __init__(self, data_loader: Any) -> None:
        self.data_loader = data_loader
        self._iterator = iter(data_loader)

    @property
    def dataset(self) -> Any:
        """The loader's data set."""
        return self.data_loader.dataset

    def inputs_labels_from_batch(self, batch_data: Any) -> tuple[Any, Any]:
        """Returns the inputs for the model and the labels for the criterion."""
        return inputs_and_labels(batch_data)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self

    def __next__(self) -> tuple[Any, Any]:
        return self.inputs_labels_from_batch(next(self._iterator))


class TrainDataLoaderIter(DataLoaderIter):
    """Starts over when the loader is exhausted, unless `auto_reset=False`."""

    def __init__(self, data_loader: Any, auto_reset: bool = True) -> None:
        super().__init__(data_loader)
        self.auto_reset = auto_reset

    def __next__(self) -> tuple[Any, Any]:
        try:
            batch = next(self._iterator)
        except StopIteration:
            if not self.auto_reset:
                raise
            self._iterator = _next_epoch(self.data_loader)
            batch = next(self._iterator)
        return self.inputs_labels_from_batch(batch)


class ValDataLoaderIter(DataLoaderIter):
    """One pass over the loader; starts over when iterated again."""

    def __init__(self, data_loader: Any) -> None:
        super().__init__(data_loader)
        self.run_limit = len(data_loader)
        self.run_counter = 0

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.run_counter >= self.run_limit:
            self._iterator = _next_epoch(self.data_loader)
            self.run_counter = 0
        return self

    def __next__(self) -> tuple[Any, Any]:
        self.run_counter += 1
        return super().__next__()


def check_loader(loader: Any, val_loader: Any) -> None:
    """Raises ValueError for what does not yield batches, or of whose batches there is no end."""
    for name, value in (("loader", loader), ("val_loader", val_loader)):
        if value is None and name == "val_loader":
            continue
        if isinstance(value, Dataset) and not isinstance(value, IterableDataset):
            raise ValueError(f"the {name} is a data set, which yields single samples; pass a DataLoader over it")
        if not isinstance(value, Iterable):
            raise ValueError(f"the {name} has unsupported type {type(value).__name__}; pass an iterable of batches")
    if isinstance(val_loader, TrainDataLoaderIter) and val_loader.auto_reset:
        raise ValueError("the val_loader is a TrainDataLoaderIter, which never ends; pass a ValDataLoaderIter")


def check_loader_types(train_loader: Any, val_loader: Any) -> None:
    """Raises ValueError for what torch_lr_finder does not take."""
    for name, value, iterator in (
        ("train_loader", train_loader, TrainDataLoaderIter),
        ("val_loader", val_loader, ValDataLoaderIter),
    ):
        if not isinstance(value, DataLoader | iterator) and not (name == "val_loader" and value is None):
            raise ValueError(
                f"`{name}` has unsupported type: {type(value)}. Pass a `torch.utils.data.DataLoader` or a child of "
                f"`fusedopt.lr_finder.{iterator.__name__}`; `fusedopt.find_lr` takes any iterable of batches."
            )


def detached(loader: Any) -> Any:
    """A loader over the same data that shares no position with `loader`.

    A `DataLoader` with persistent workers keeps its iterator: iterating over the loader itself would disturb whoever is
    in the middle of it, and change what its next pass draws. A data loader iterator gets a new position by itself.
    """
    if isinstance(loader, DataLoader):
        twin = copy.copy(loader)
        twin._iterator = None
        return twin
    return loader


class Passes:
    """Gives an iterator over a loader's batches each time it is iterated.

    The first is made at once: making one draws from the random number generators, and so they are drawn from in the
    order in which torch_lr_finder does, whose histories can then be repeated bit for bit.

    Where the order of the samples is a `ResumableSampler`'s, the first pass is over the rest of its epoch, and each
    later one over the next: it is told so, as by the loop that trains.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader
        self._sampler = _resumable_sampler(loader)
        if self._sampler is not None:  # forgets that the rest of the epoch has been drawn, which it may not be twice
            self._sampler.load_state_dict(self._sampler.state_dict())
        self._first: Iterator[Any] | None = iter(loader)

    @property
    def in_the_middle(self) -> bool:
        """Whether the next pass is over a part of an epoch only, which may hold no batch."""
        return self._sampler is not None and self._sampler.position > 0

    def __iter__(self) -> Iterator[Any]:
        first, self._first = self._first, None
        if first is not None:
            return first
        return _next_epoch(self._loader)


def _next_epoch(loader: Any) -> Iterator[Any]:
    if (sampler := _resumable_sampler(loader)) is not None:
        sampler.advance(len(sampler))
    return iter(loader)


def _resumable_sampler(loader: Any) -> ResumableSampler | None:
    for sampler in (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)):
        if hasattr(sampler, "advance"):
            from fusedopt.runs.sampler import ResumableSampler  # with whose package comes more than is needed here

            if isinstance(sampler, ResumableSampler):
                return sampler
    return None


def endless(passes: Passes) -> Iterator[Any]:
    """A loader's batches, again and again.

    Raises:
        ValueError: there are none, or no more of an iterator that cannot start over.
    """
    count = 0
    while True:
        before, may_be_empty = count, passes.in_the_middle
        for batch in passes:
            count += 1
            yield batch
        if count == before and not may_be_empty:
            if not count:
                raise ValueError("the loader yields no batches; is the data set smaller than a batch, with drop_last?")
            raise ValueError(
                f"the loader ran out of batches after {count} and cannot start over; pass one that can be iterated "
                f"again, or fewer iterations (num_iter)"
            )


def to_device(value: Any, device: torch.device, non_blocking: bool) -> Any:
    """Moves tensors, and whatever else has a method `to`, in nested tuples, lists and mappings."""
    if hasattr(value, "to"):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device, non_blocking) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device, non_blocking) for item in value)
    if isinstance(value, Mapping):
        return {key: to_device(item, device, non_blocking) for key, item in value.items()}
    return value


def batch_size(value: Any) -> int:
    """The length of the first tensor in a nested batch, by which validation losses are weighted; 1 without any."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() else 1
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            if (size := _size_if_any(item)) is not None:
                return size
    return 1


def _size_if_any(value: Any) -> int | None:
    if isinstance(value, Tensor | Mapping | tuple | list):
        return batch_size(value)
    return None
