"""What happens at each learning rate: a training step, and the loss on a validation set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fusedopt.lr_finder.batches import BatchFn, DataLoaderIter, batch_size, inputs_and_labels, to_device

Closure = Callable[[nn.Module, Any], Tensor]
"""Computes the loss, a scalar, from the model and a batch on the device."""


@dataclass
class Task:
    """A model, what trains it, and how its loss is computed.

    Attributes:
        criterion: loss of (outputs, labels), a scalar; None with a closure.
        batch_fn: what a loader yields to (inputs, labels).
        closure: takes the place of criterion and batch_fn.
        device: where the batches go.
        autocast: keyword arguments of `torch.autocast`; None computes in the model's own precision.
        grad_scaler: a `torch.amp.GradScaler`, for float16.
        apex: whether apex.amp scales the loss.
        process_group: over whose ranks losses are averaged.
    """

    model: nn.Module
    optimizer: Optimizer
    criterion: Callable[[Any, Any], Tensor] | None
    device: torch.device
    batch_fn: BatchFn | None = None
    closure: Closure | None = None
    autocast: Mapping[str, Any] | None = None
    grad_scaler: Any = None
    apex: bool = False
    process_group: dist.ProcessGroup | None = None
    non_blocking: bool = True

    def __post_init__(self) -> None:
        if self.closure is None and self.criterion is None:
            raise ValueError("a criterion is needed, or closure=lambda model, batch: loss in its place")
        if self.closure is not None and (self.criterion is not None or self.batch_fn is not None):
            raise ValueError("closure computes the loss by itself: pass criterion=None and no batch_fn with it")
        if isinstance(self.optimizer, torch.optim.Rprop):
            raise ValueError(
                "the learning rate of Rprop is the length of its first steps only, so that a range test would measure "
                "nothing; choose it by trainings"
            )
        if self.autocast is not None and self.grad_scaler is None:
            dtype = self.autocast.get("dtype") or torch.get_autocast_dtype(self.device.type)
            if dtype == torch.float16:
                raise ValueError("`grad_scaler` is required with float16: pass torch.amp.GradScaler(), or use bfloat16")
        theirs = {p for module in self.modules for p in module.parameters()}
        ours = {p for group in self.optimizer.param_groups for p in group["params"]}
        if self.closure is None and theirs and not theirs & ours:
            warnings.warn(
                "the optimizer holds none of the model's parameters: was the model made anew after it?", stacklevel=4
            )
        if self.process_group is None:
            self.process_group = next(
                (m.process_group for m in self.model.modules() if isinstance(m, DistributedDataParallel)), None
            )

    @property
    def modules(self) -> list[nn.Module]:
        """The model, and the criterion where it is a module: it may have parameters and buffers too."""
        return [m for m in (self.model, self.criterion) if isinstance(m, nn.Module)]

    @property
    def generator_owners(self) -> list[Any]:
        """What may draw from generators of its own: the modules, and the functions that make a loss of a batch."""
        functions = (self.criterion, self.batch_fn, self.closure)
        return [*(m for parent in self.modules for m in parent.modules()), *(f for f in functions if f is not None)]

    def train(self, batches: Iterator[Any], accumulation_steps: int, ready_made: bool) -> Tensor:
        """One optimizer step on the gradient of several batches; returns their mean loss, a scalar on the device.

        Args:
            batches: as many as `accumulation_steps` are drawn.
            accumulation_steps: batches whose gradients are averaged.
            ready_made: whether the batches are (inputs, labels) already.
        """
        if not self.model.training:  # otherwise the modes are as the user wants them: some layers may be frozen
            self.model.train()
        self.optimizer.zero_grad()
        total: Tensor | None = None
        for _ in range(accumulation_steps):
            loss, _ = self._loss(next(batches), ready_made)
            loss = loss / accumulation_steps
            self._backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        assert total is not None
        return self._mean_over_ranks(total)

    @torch.no_grad()
    def validate(self, loader: Iterable[Any]) -> Tensor:
        """The mean loss over a loader's batches, weighted by their sizes; a scalar on the device."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.zeros(2, dtype=dtype, device=self.device)  # of the losses, and of the weights
        ready_made = isinstance(loader, DataLoaderIter)
        weight = 0
        for batch in loader:
            loss, size = self._loss(batch, ready_made)
            sums[0] += loss.to(dtype) * size
            weight += size
        for module, training in modes:
            module.training = training
        if not weight:
            raise ValueError("the validation loader yields no batches")
        sums[1] = weight
        if self.process_group is not None:
            dist.all_reduce(sums, group=self.process_group)
        return sums[0] / sums[1]

    def _loss(self, batch: Any, ready_made: bool) -> tuple[Tensor, int]:
        with self._autocast():
            if self.closure is not None:
                batch = to_device(batch, self.device, self.non_blocking)
                loss = self.closure(self.model, batch)
                size = batch_size(batch)
            else:
                split = inputs_and_labels if ready_made or self.batch_fn is None else self.batch_fn
                inputs, labels = to_device(split(batch), self.device, self.non_blocking)
                assert self.criterion is not None
                loss = self.criterion(self.model(inputs), labels)
                size = batch_size(labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must be a scalar tensor, not {what}; reduce it, e.g. by loss.mean()")
        return loss.reshape(()), size

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(**{"device_type": self.device.type, **self.autocast})

    def _backward(self, loss: Tensor) -> None:
        if self.grad_scaler is not None:
            loss = self.grad_scaler.scale(loss)
        if self.apex:
            from apex import amp  # type: ignore[import-not-found]

            with amp.scale_loss(loss, self.optimizer) as scaled:
                scaled.backward()
            return
        torch.autograd.backward(loss)

    def _mean_over_ranks(self, loss: Tensor) -> Tensor:
        if self.process_group is None:
            return loss
        loss = loss.clone()
        dist.all_reduce(loss, group=self.process_group)
        return loss / dist.get_world_size(self.process_group)


def first_device(model: nn.Module, optimizer: Optimizer) -> torch.device:
    """The device of the model's first parameter, or of the optimizer's where the model has none."""
    for parameter in chain(model.parameters(), *(group["params"] for group in optimizer.param_groups)):
        device: torch.device = parameter.device
        return device
    raise ValueError("there are no parameters to find a learning rate for")
