"""Small training runs that can be interrupted anywhere: every optimizer and every scheduler, as data."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.training import OPTIMIZERS as NAMES
from fusedopt.training import Checkpoint, ResumableSampler, make_optimizer

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: fusedopt.SGD(p, lr=0.05),
    "sgd-momentum": lambda p: fusedopt.SGD(p, lr=0.05, momentum=0.9, nesterov=True, max_grad_norm=1.0),
    "sgd-classic": lambda p: fusedopt.SGD(p, lr=0.05, momentum=0.9, momentum_form="classic"),
    "delta-bar-delta": lambda p: fusedopt.DeltaBarDelta(p, lr=0.05, momentum=0.5),
    "rmsprop": lambda p: fusedopt.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: fusedopt.Adagrad(p, lr=0.05, lr_decay=0.1),
    "adam": lambda p: fusedopt.Adam(p, lr=0.02, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: fusedopt.AdamW(p, lr=0.02, max_grad_norm=0.5),
    "adamax": lambda p: fusedopt.Adamax(p, lr=0.02),
    "adadelta": lambda p: fusedopt.Adadelta(p, lr=0.5, weight_decay=0.01),
    "radam": lambda p: fusedopt.RAdam(p, lr=0.02),
    "nadam": lambda p: fusedopt.NAdam(p, lr=0.02),
    "asgd": lambda p: fusedopt.ASGD(p, lr=0.05, lambd=0.01, t0=3.0),
    "rprop": lambda p: fusedopt.Rprop(p, lr=0.01),
    "lion": lambda p: fusedopt.Lion(p, lr=0.005),
    "lars": lambda p: fusedopt.LARS(p, lr=0.5, momentum=0.9, nesterov=True),
    "lamb": lambda p: fusedopt.LAMB(p, lr=0.02),
    "swats": lambda p: fusedopt.SWATS(p, lr=0.02),
    "swats-switch": lambda p: fusedopt.SWATS(p, lr=0.02, eps=0.01),
}
OPTIMIZERS |= {name: functools.partial(make_optimizer, name) for name in NAMES if name not in OPTIMIZERS}

# Of networks in this dtype: every option of what numbers are stored in.
STORED: dict[str, tuple[torch.dtype, Callable[[Any], Optimizer]]] = {
    "sgd-float16-masters-average": (
        torch.float16,
        lambda p: fusedopt.SGD(p, lr=0.05, momentum=0.9, master_weights=True, ema_decay=0.9, fused=True),
    ),
    "adam-bfloat16-by-chance": (
        torch.bfloat16,
        lambda p: fusedopt.Adam(p, lr=0.02, stochastic_rounding=True, ema_decay=0.9, rounding_seed=3),
    ),
    "lamb-bfloat16-masters": (torch.bfloat16, lambda p: fusedopt.LAMB(p, master_weights=True, state_dtype="8bit")),
    "adamw-bfloat16-states": (torch.float32, lambda p: fusedopt.AdamW(p, lr=0.02, state_dtype=torch.bfloat16)),
    "adamw-8-bits-by-chance": (
        torch.float32,
        lambda p: fusedopt.AdamW(
            p, lr=0.02, state_dtype="8bit", min_8bit_size=0, stochastic_rounding=True, ema_decay=0.9
        ),
    ),
    "swats-8-bits": (
        torch.bfloat16,
        lambda p: fusedopt.SWATS(p, lr=0.02, eps=0.01, state_dtype="8bit", min_8bit_size=9, master_weights=True),
    ),
}


def _sequential(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    warm_up = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, lr_scheduler.CosineAnnealingLR(optimizer, 20)], [4])


def _chained(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.StepLR(optimizer, 3)]
    )


# A scheduler of the package is one more line.
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.95**t),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [4, 9], 0.5),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.5, 9),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=9),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 20, 2.0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "warm-restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.05, 3, cycle_momentum=False),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, 2000, cycle_momentum="betas" in o.defaults),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.7),
    "sequential": _sequential,
    "chained": _chained,
}


class Run:
    """A network with dropout and batch normalisation that draws from every generator of random numbers there is."""

    def __init__(self, optimizer: str, scheduler: str, folder: Path, seed: int = 0) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002, the global generator is the one that a checkpoint saves
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.dtype, make = STORED.get(optimizer) or (torch.float32, OPTIMIZERS[optimizer])
        self.optimizer = make(self.model.to(self.dtype).parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        self.noise = fusedopt.GradientNoise(self.optimizer, eta=0.001)
        self.sampler = ResumableSampler(36, seed=1)
        self.generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(36, 6, generator=torch.Generator().manual_seed(2))
        data = TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())
        self.loader = DataLoader(data, batch_size=8, sampler=self.sampler, generator=self.sampler.generator)
        self.step = 0
        self.checkpoint = Checkpoint(
            folder,
            keep=2,
            mode="min",
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            noise=self.noise,
            sampler=self.sampler,
            generator=self.generator,
        )

    def load(self) -> None:
        self.step = self.checkpoint.load().step

    def train(self, until: int, after_step: Callable[[], object] = lambda: None, save: bool = False) -> None:
        while self.step < until:
            for inputs, labels in self.loader:
                shift = random.random() + np.random.random() + torch.rand(1, generator=self.generator)  # noqa: NPY002
                loss = F.cross_entropy(self.model((inputs + 0.1 * shift).to(self.dtype)), labels)
                self.optimizer.zero_grad()
                self.scaler.scale(loss).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
                self.scheduler.step(*[loss.item()] if plateau else [])
                self.sampler.advance(len(labels))
                self.step += 1
                if save:
                    self.checkpoint.save(epoch=self.sampler.epoch, step=self.step, metric=loss.item())
                after_step()
                if self.step == until:
                    break

    def digest(self) -> str:
        """A hash of every bit of the run: weights, states, learning rates, and the random numbers to come."""
        parts: list[Any] = [self.step, random.random(), np.random.random(), torch.rand(3)]  # noqa: NPY002
        for value in self.checkpoint.objects.values():
            parts.append(value.get_state() if isinstance(value, torch.Generator) else value.state_dict())
        return hashlib.sha256(_text(parts).encode()).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}{value.detach().flatten().view(torch.uint8).numpy().tobytes().hex()}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    return repr(value)
