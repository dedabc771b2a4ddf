"""A training run that a range test interrupts, and whether two of them are the same."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fusedopt
from fusedopt.lr_finder import find_lr


class Net(nn.Module):
    """With all that a module can keep: parameters, buffers written and replaced, random layers, a frozen norm."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.frozen = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.BatchNorm1d(12)
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(12, 3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("average", torch.zeros(12))
        self.unused = nn.Parameter(torch.ones(3))
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.seen += len(x)
        hidden = self.frozen(self.norm(self.first(x)))
        if self.training:
            self.average = 0.9 * self.average + 0.1 * hidden.detach().mean(0)  # another tensor than before
        noise = 0.01 * (random.random() + np.random.rand())  # noqa: NPY002
        return self.last(self.drop(torch.relu(hidden + self.average))) + noise


class Learned(nn.Module):
    """A criterion with a parameter and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, outputs, labels):
        self.count += 1
        return nn.functional.cross_entropy(self.scale * outputs, labels)


class Noisy(Dataset):
    """Draws from a generator of its own, and from torch's."""

    def __init__(self):
        self.generator = np.random.default_rng(0)
        self.x = torch.randn(60, 6, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * self.generator.standard_normal() + 0.1 * torch.randn(6), int(self.x[i, 0] > 0)


OPTIMIZERS = {
    "fusedopt.SGD": lambda p: fusedopt.SGD(p, lr=0.05, momentum=0.9, max_grad_norm=1.0),
    "fusedopt.RMSprop": lambda p: fusedopt.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    "fusedopt.Adagrad": lambda p: fusedopt.Adagrad(p, lr=1e-2),
    "fusedopt.Adam": lambda p: fusedopt.Adam(p, lr=1e-3, amsgrad=True),
    "fusedopt.AdamW": lambda p: fusedopt.AdamW(p, lr=1e-3),
    "fusedopt.LAMB": lambda p: fusedopt.LAMB(p, lr=1e-2),
    "torch.SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "torch.AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "torch.Adam-tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), foreach=False),
    "torch.Adam-fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "torch.NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
}


class Run:
    """A training run that can be continued, and everything in it that training changes."""

    def __init__(self, make_optimizer, device="cpu", dtype=torch.float32):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        self.device, self.dtype = device, dtype
        self.model, self.criterion = Net().to(device, dtype), Learned().to(device, dtype)
        params = [*self.model.parameters(), *self.criterion.parameters()]
        self.optimizer = make_optimizer([p for p in params if p is not self.model.last.bias])  # which gets gradients
        self.loader = DataLoader(Noisy(), 10, shuffle=True, generator=torch.Generator().manual_seed(5))
        self.losses = []

    def batch_fn(self, batch):
        return batch[0].to(self.device, self.dtype), batch[1].to(self.device)

    def train(self, epochs):
        self.model.train()
        self.model.frozen.eval()
        for _ in range(epochs):
            for batch in self.loader:
                inputs, labels = self.batch_fn(batch)
                self.optimizer.zero_grad()
                loss = self.criterion(self.model(inputs), labels)
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())

    def find(self, **kwargs):
        options = {"start_lr": 1e-5, "end_lr": 5.0, "num_iter": 12, "batch_fn": self.batch_fn, "diverge_th": None}
        return find_lr(self.model, self.optimizer, self.criterion, self.loader, **options | kwargs)

    def everything(self):
        generators = [self.loader.generator.get_state(), self.loader.dataset.generator.bit_generator.state]
        if self.device == "cuda":
            generators.append(torch.cuda.get_rng_state())
        params = [*self.model.parameters(), *self.criterion.parameters()]
        return {
            "losses": self.losses,
            "parameters": params,
            "buffers": [*self.model.buffers(), *self.criterion.buffers()],
            "gradients": [p.grad for p in params],
            "states": [dict(self.optimizer.state[p]) if p in self.optimizer.state else None for p in params],
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups],
            "modes": [m.training for m in self.model.modules()],
            "calls": self.model.calls,
            "grad_norm": getattr(self.optimizer, "grad_norm", None),
            "random": [torch.get_rng_state(), random.getstate(), np.random.get_state(), *generators],  # noqa: NPY002
        }


def assert_same(actual, expected, where=""):
    assert type(actual) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.device, actual.shape) == (expected.dtype, expected.device, expected.shape), where
        assert torch.equal(actual, expected), where
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(actual, expected), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for i, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert_same(mine, theirs, f"{where}[{i}]")
    else:
        assert actual == expected, where
