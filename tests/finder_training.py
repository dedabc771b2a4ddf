"""A short training that a range test interrupts, by each of its two entries."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.lr_finder import LRFinder, find_lr


def data(size=24):
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(size, 4, generator=generator), torch.randint(2, (size,), generator=generator))


class Run:
    """A model, its optimizer and a loader; `step` trains on fixed batches."""

    def __init__(self, optimizer_class=fusedopt.AdamW):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
        self.optimizer = optimizer_class(self.model.parameters(), lr=1e-2)
        self.criterion = nn.CrossEntropyLoss()
        self.loader = DataLoader(data(), 8)

    def train(self, steps=3):
        for inputs, labels in [*self.loader][:steps]:
            self.optimizer.zero_grad()
            self.criterion(self.model(inputs), labels).backward()
            self.optimizer.step()

    def find(self, how="find_lr", **options):
        options = {"num_iter": 12, "end_lr": 1.0, "diverge_th": None} | options
        if how == "find_lr":
            return find_lr(self.model, self.optimizer, self.criterion, self.loader, **options)
        finder = LRFinder(self.model, self.optimizer, self.criterion)
        finder.range_test(self.loader, **options)
        finder.reset()
        return finder.result


both = pytest.mark.parametrize("how", ["find_lr", "LRFinder"])
