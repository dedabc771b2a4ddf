"""What the tests of trainers train."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = {
    "AdamW": {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "eps": 1e-3},
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def dataset(samples: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def loader(batch_size: int = 8) -> DataLoader:
    return DataLoader(dataset(), batch_size)
