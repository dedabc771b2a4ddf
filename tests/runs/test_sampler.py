"""The sampler in every loader: what it yields depends on nothing but its seed and on how far the training has come."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fusedopt.training import Checkpoint, ResumableSampler

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Indices(Dataset[tuple[int, int]]):
    """Samples that are their index, and the seed of the worker that read them."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, int]:
        worker = get_worker_info()
        return index, 0 if worker is None else worker.seed - worker.id


LOADERS: dict[str, dict[str, Any]] = {
    "this process": {},
    "workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "far ahead": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 9},
    "seeded": {"num_workers": 2, "worker_init_fn": torch.manual_seed},
}


def loader_of(sampler: ResumableSampler, batch_size: int = 4, **options: Any) -> DataLoader[tuple[int, int]]:
    options.setdefault("generator", sampler.generator)
    return DataLoader(Indices(sampler.size), batch_size, sampler=sampler, **options)


def walk(sampler: ResumableSampler, steps: int, **options: Any) -> tuple[list[int], list[int]]:
    """Trains for so many steps; returns the samples, and the seeds of the workers."""
    loader, seen, seeds = loader_of(sampler, **options), list[int](), list[int]()
    while True:
        for indices, worker_seeds in loader:
            if steps:  # whatever is left of the epoch is fetched, so that the workers end in order
                seen += indices.tolist()
                seeds += worker_seeds.tolist()
                sampler.advance(len(indices))
                steps -= 1
        if not steps:
            return seen, seeds


@pytest.mark.parametrize("loader", LOADERS)
def test_an_order_does_not_depend_on_the_loader(loader: str) -> None:
    """Some draw a seed for each epoch, some for the first one only."""
    straight, _ = walk(ResumableSampler(11, seed=4), 9, **LOADERS[loader])
    generator = torch.Generator().manual_seed(4)
    assert straight == [i for _ in range(3) for i in torch.randperm(11, generator=generator).tolist()]
    first, second = ResumableSampler(11, seed=4), ResumableSampler(11, seed=4)
    head, _ = walk(first, 4, **LOADERS[loader])  # within the second epoch
    second.load_state_dict(first.state_dict())
    assert head + walk(second, 5, **LOADERS[loader])[0] == straight


def test_workers_have_another_seed_in_each_epoch_and_the_same_after_an_interruption() -> None:
    _, straight = walk(ResumableSampler(8, seed=3), 6, num_workers=2)
    assert [len(set(straight[i : i + 8])) for i in (0, 8, 16)] == [1, 1, 1]
    assert len(set(straight)) == 3
    for steps in (2, 3):  # at the end of an epoch, within one
        first, second = ResumableSampler(8, seed=3), ResumableSampler(8, seed=3)
        walk(first, steps, num_workers=2)
        second.load_state_dict(first.state_dict())
        assert walk(second, 6 - steps, num_workers=2)[1] == straight[4 * steps :]


@pytest.mark.parametrize("loader", ["this process", "workers", "persistent"])
@pytest.mark.parametrize(("size", "epochs", "steps"), [(8, 3, 6), (11, 3, 6)])
def test_the_documented_loop_with_drop_last(loader: str, size: int, epochs: int, steps: int) -> None:
    sampler, taken = ResumableSampler(size, drop_last=True), 0
    batches = loader_of(sampler, drop_last=True, **LOADERS[loader])
    while sampler.epoch < epochs:
        for indices, _ in batches:
            assert len(indices) == 4
            sampler.advance(len(indices))
            taken += 1
    assert (sampler.epoch, sampler.position, taken) == (epochs, 0, steps)


@pytest.mark.parametrize("loader", ["this process", "workers"])
def test_what_a_loader_has_left_out_is_said(loader: str) -> None:
    sampler = ResumableSampler(23)
    batches = loader_of(sampler, drop_last=True, **LOADERS[loader])

    def train() -> None:
        while sampler.epoch < 3:
            for indices, _ in batches:
                sampler.advance(len(indices))

    with pytest.raises(RuntimeError, match=r"left out the last 3 samples .* drop_last=True.* sampler\.advance\(3\)"):
        train()
    sampler.advance(3)
    assert (sampler.epoch, sum(len(indices) for indices, _ in batches)) == (1, 20)


def test_batches_larger_than_the_set_are_said() -> None:
    sampler = ResumableSampler(3, drop_last=True)
    batches = loader_of(sampler, drop_last=True)
    assert list(batches) == []
    with pytest.raises(RuntimeError, match="take batches of at most 3"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_from_the_global_generator_is_said(workers: int, tmp_path: Any) -> None:
    sampler = ResumableSampler(12)
    checkpoint = Checkpoint(tmp_path, sampler=sampler)
    walk(sampler, 1)
    checkpoint.save(epoch=0, step=1)
    checkpoint.load()
    with pytest.warns(UserWarning, match=r"give the loader generator=sampler\.generator"):
        walk(sampler, 1, num_workers=workers, generator=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.load()
        walk(sampler, 2, num_workers=workers)
        assert (sampler.epoch, sampler.position) == (1, 0)
        checkpoint.save(epoch=1, step=3)
        checkpoint.load()  # at the beginning of an epoch, where a run without the interruption draws as well
        walk(sampler, 1, num_workers=workers, generator=None)
