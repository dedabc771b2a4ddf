"""What the range test is tried on."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def make_task(dtype=torch.float64, device="cpu"):
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(12, 2).sin()
    y = 3 * x[:, :1] - x[:, 1:] ** 2
    model = nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25]]))
        model.bias.fill_(0.1)
    model, x, y = model.to(device, dtype), x.to(dtype), y.to(dtype)
    optimizer = fusedopt.SGD(model.parameters(), lr=1e-3, momentum=0.5)
    train, val = DataLoader(TensorDataset(x, y), 4), DataLoader(TensorDataset(x[:5], y[:5]), 3)
    return model, optimizer, train, val


class Empty(DataLoader):
    def __init__(self):
        super().__init__(TensorDataset(torch.zeros(0, 2), torch.zeros(0, 1)))
