"""Loaders come out of a range test as they went in: samplers with a position, generators, data sets that count."""

import functools

import numpy as np
import pytest
import torch
from finder_runs import assert_same
from finder_training import Run, both, data
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from fusedopt.lr_finder import LRFinder, TrainDataLoaderIter, ValDataLoaderIter, find_lr
from fusedopt.training import ResumableSampler

pytestmark = pytest.mark.usefixtures("one_thread")


def loaders(sampler, dataset, kind, drop_last=False):
    generator = {"generator": sampler.generator}
    if kind == "sampler":
        return DataLoader(dataset, 4, sampler=sampler, drop_last=drop_last, **generator)
    if kind == "batch sampler":
        return DataLoader(dataset, batch_sampler=BatchSampler(sampler, 4, drop_last), **generator)
    return DataLoader(
        dataset, 4, sampler=sampler, drop_last=drop_last, num_workers=1, persistent_workers=True, **generator
    )


def order_of(sampler, loader, epochs, find=None, at=()):
    """The samples of so many epochs, with a test before the steps `at`."""
    seen, step = [], 0
    while sampler.epoch < epochs:
        for inputs, _ in loader:
            if step in at:
                find()
            seen += inputs[:, 0].tolist()
            sampler.advance(len(inputs))
            step += 1
    return seen


@both
@pytest.mark.parametrize("kind", ["sampler", "batch sampler", "workers"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_resumable_sampler_is_put_back_and_a_test_may_be_longer_than_its_epoch(how, kind, shuffle):
    dataset = data(10)
    expected = None
    for disturb in (False, True):
        sampler = ResumableSampler(10, seed=1, shuffle=shuffle)
        run = Run()
        run.loader = loaders(sampler, dataset, kind)
        if disturb:
            run.find(how, num_iter=8)
        test = functools.partial(run.find, how, num_iter=8)
        seen = order_of(sampler, run.loader, 3, test, at=(1, 5) if disturb else ())
        assert len(seen) == 30
        expected = expected or seen
    assert seen == expected


def test_the_test_sees_the_epochs_that_training_would():
    dataset = data(10)
    sampler = ResumableSampler(10, seed=1)
    loader = loaders(sampler, dataset, "sampler")
    sampler.advance(4)
    run, seen = Run(), []
    run.model.register_forward_pre_hook(lambda model, args: seen.extend(args[0][:, 0].tolist()))
    run.loader = loader
    run.find(num_iter=8)  # 2 + 3 + 3 batches
    assert (sampler.epoch, sampler.position) == (0, 4)
    assert seen == order_of(sampler, loader, 3)


def test_a_rest_too_short_for_a_batch_and_one_that_was_drawn():
    sampler = ResumableSampler(10, seed=1)
    run = Run()
    run.loader = loaders(sampler, data(10), "sampler", drop_last=True)
    sampler.advance(8)
    assert len(run.find(num_iter=5).losses) == 5
    sampler.load_state_dict(ResumableSampler(10, seed=1).state_dict())
    for _ in run.loader:  # to its end, without a word to the sampler
        pass
    assert len(run.find(num_iter=5).losses) == 5
    with pytest.raises(RuntimeError, match="seen already"):
        next(iter(run.loader))


def test_a_resumable_sampler_for_validation_and_under_iterators():
    sampler, other = ResumableSampler(10, seed=1), ResumableSampler(6, seed=2)
    run = Run()
    train, val = loaders(sampler, data(10), "sampler"), loaders(other, data(6), "sampler")
    assert len(find_lr(run.model, run.optimizer, run.criterion, train, val_loader=val, num_iter=5).losses) == 5
    finder = LRFinder(run.model, run.optimizer, run.criterion)
    finder.range_test(TrainDataLoaderIter(train), ValDataLoaderIter(val), num_iter=8, end_lr=0.1)
    assert len(finder.history["lr"]) == 8
    finder.reset()
    assert (sampler.epoch, sampler.position, other.epoch, other.position) == (0, 0, 0, 0)


class Consumed(Sampler):
    """A sampler that keeps its place, as those for very long runs do."""

    def __init__(self, size):
        self.size, self.consumed, self.log = size, 0, []

    def __len__(self):
        return self.size

    def __iter__(self):
        for _ in range(self.size):
            self.log.append(self.consumed)
            yield self.consumed % self.size
            self.consumed += 1


class Changing(Dataset):
    """Counts its epochs, and draws from generators in its transforms."""

    def __init__(self):
        self.samples, self.epoch, self.handle = data(), 0, None
        self.transform = functools.partial(self.shift, np.random.default_rng(1))
        self.cache = {}

    @staticmethod
    def shift(generator, x):
        return x + float(generator.standard_normal())

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        x, y = self.samples[i]
        self.epoch += i == 0
        self.handle = self.handle or object()
        self.cache[i] = x
        return self.transform(x) + self.epoch, y


class Jitter:
    """A collate function with a generator."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(2)

    def collate(self, samples):
        inputs = torch.stack([x for x, _ in samples])
        return inputs + torch.rand(1, generator=self.generator), torch.tensor([y for _, y in samples])


class Batches:
    """A loader of one's own, whose batches are others in each epoch."""

    def __init__(self):
        self.epoch, self.inputs = 0, data().tensors

    def __iter__(self):
        self.epoch += 1
        yield from ((x[None].repeat(4, 1) + self.epoch, y[None].repeat(4)) for x, y in zip(*self.inputs, strict=True))


def test_the_epoch_of_a_loader_of_ones_own():
    run = Run()
    run.loader = Batches()
    run.find(num_iter=30)
    assert run.loader.epoch == 0


@both
def test_positions_of_samplers_and_generators_and_numbers_of_data_sets(how):
    batches = []
    for disturb in (False, True):
        dataset, jitter = Changing(), Jitter()
        run = Run()
        run.loader = DataLoader(dataset, 8, sampler=Consumed(20), collate_fn=jitter.collate)
        if disturb:
            run.find(how)
            assert run.loader.sampler.log == []
            assert dataset.handle is not None  # what was opened stays open
            assert dataset.cache
        batches.append([inputs for _ in range(2) for inputs, _ in run.loader])
    assert_same(batches[1], batches[0])
