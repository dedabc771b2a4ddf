"""Batches of any kind, and validation."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from finder_task import make_task
from torch import nn

import fusedopt
from fusedopt.lr_finder import LRFinder, TrainDataLoaderIter, ValDataLoaderIter, find_lr

pytestmark = pytest.mark.usefixtures("one_thread")


Pair = namedtuple("Pair", ["inputs", "labels"])


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, inputs, offset=None):
        if isinstance(inputs, dict):
            inputs = inputs["a"]
        if isinstance(inputs, tuple | list):
            inputs, offset = inputs
        out = self.linear(inputs)
        return out if offset is None else out + offset


def as_pair(x, y):
    return x, y


@dataclass
class Movable:
    """An object that moves itself to a device."""

    x: torch.Tensor

    def to(self, device, non_blocking=False):
        self.moved_to = str(device)
        return self


BATCHES = {
    "tuple": (lambda x, y: (x, y), {}),
    "list with more": (lambda x, y: [x, y, "ignored"], {}),
    "namedtuple": (Pair, {}),
    "nested inputs": (lambda x, y: ((x, torch.zeros_like(y)), y), {}),
    "dict of inputs": (lambda x, y: ({"a": x}, y), {}),
    "dict": (lambda x, y: {"x": x, "y": y}, {"batch_fn": lambda b: (b["x"], b["y"])}),
    "mapping": (lambda x, y: UserDict(x=x, y=y), {"batch_fn": lambda b: (b["x"], b["y"])}),
    "closure": (
        lambda x, y: {"x": x, "more": [y, Movable(x)]},
        {"closure": lambda model, b: (model(b["x"]) - b["more"][0]).square().mean()},
    ),
    "closure on a mapping": (
        lambda x, y: UserDict(x=x, y=y),
        {"closure": lambda model, b: nn.functional.mse_loss(model(b["x"]), b["y"])},
    ),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("validate", [False, True])
def test_batches_of_any_kind(name, validate):
    pack, options = BATCHES[name]
    results = []
    for make, kwargs in ((as_pair, {}), (pack, options)):
        torch.manual_seed(0)
        model = TwoHeads()
        optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
        x = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(10, 2)
        batches = [make(x[i : i + 4], x[i : i + 4, :1]) for i in range(0, 10, 4)]
        criterion = None if "closure" in kwargs else nn.MSELoss()
        val = batches if validate else None
        results.append(find_lr(model, optimizer, criterion, batches, val_loader=val, num_iter=9, end_lr=0.5, **kwargs))
    assert results[0].losses == pytest.approx(results[1].losses, rel=1e-12)
    assert results[0].losses[-1] != results[0].losses[0]


def test_validation_is_weighted_by_the_sizes_of_the_batches():
    model, optimizer, train, val = make_task()
    result = find_lr(model, optimizer, nn.MSELoss(), train, val_loader=val, start_lr=1e-30, end_lr=2e-30, num_iter=2)
    inputs, labels = val.dataset.tensors
    assert result.losses[0] == pytest.approx(nn.functional.mse_loss(model(inputs), labels).item(), rel=1e-12)


def test_subclasses_of_torch_lr_finders_iterators():
    model, optimizer, train, val = make_task()

    class Swapped(TrainDataLoaderIter):
        def inputs_labels_from_batch(self, batch_data):
            return batch_data[0] + 1, batch_data[1]

    class SwappedVal(ValDataLoaderIter):
        def inputs_labels_from_batch(self, batch_data):
            return batch_data[0] + 1, batch_data[1]

    def plus_one(batch):
        return batch[0] + 1, batch[1]

    finder = LRFinder(model, optimizer, nn.MSELoss())
    finder.range_test(Swapped(train), val_loader=SwappedVal(val), end_lr=0.1, num_iter=7)
    finder.reset()
    losses = find_lr(
        model, optimizer, nn.MSELoss(), train, val_loader=val, batch_fn=plus_one, start_lr=None, end_lr=0.1, num_iter=7
    ).smoothed
    assert finder.history["loss"] == losses
    exhausted = TrainDataLoaderIter(train, auto_reset=False)
    with pytest.raises(ValueError, match="auto_reset"):
        finder.range_test(exhausted, end_lr=0.1, num_iter=7)
