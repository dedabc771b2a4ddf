"""One batch of training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fusedopt.gradients import clip_grad_norm_
from fusedopt.sharding import is_sharded
from fusedopt.training.batches import Loss, Part
from fusedopt.training.compute import Precision


class Step:
    """Forward and backward of a batch, and the optimizer's step after the last batch that belongs to it.

    Args:
        model: images to scores; `DistributedDataParallel` and `fully_shard` average gradients over the processes.
        optimizer: over its parameters.
        loss_fn: scores and targets to the mean loss of the batch.
        precision: what the model runs in.
        max_grad_norm: clips the gradients before the step; None does not.
        stopwatch: is entered around `optimizer.step()`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Loss,
        precision: Precision,
        max_grad_norm: float | None = None,
        stopwatch: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.model, self.optimizer, self.loss_fn, self.precision = model, optimizer, loss_fn, precision
        self.max_grad_norm, self.stopwatch = max_grad_norm, stopwatch or nullcontext()
        self._distributed = isinstance(model, DistributedDataParallel)
        self._sharded = is_sharded(getattr(model, "_orig_mod", model))  # of torch.compile

    def __call__(self, images: Tensor, targets: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Trains on a batch; returns its mean loss and its scores [B, classes], without gradients."""
        if part.first:
            self.optimizer.zero_grad()
        # Gradients travel between processes once per step: with its last batch.
        if self._sharded:
            self.model.set_requires_gradient_sync(part.last)  # type: ignore[operator]
        if self._distributed and not part.last:
            with self.model.no_sync():  # type: ignore[operator]
                loss, scores = self._gradients(images, targets, part)
        else:
            loss, scores = self._gradients(images, targets, part)
        if part.last:
            self._update()
        return loss.detach(), scores.detach()

    def _gradients(self, images: Tensor, targets: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        scores = self.precision(self.model, images)
        loss = self.loss_fn(scores, targets)
        # Not multiplied by 1, which would cost an operation forwards and one backwards.
        weighted = loss if part.weight == 1 else loss * part.weight
        torch.autograd.backward(self.precision.scaler.scale(weighted))
        return loss, scores

    def _update(self) -> None:
        scaler = self.precision.scaler
        if self.max_grad_norm is not None:
            scaler.unscale_(self.optimizer)
            clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.max_grad_norm)
        with self.stopwatch:
            scaler.step(self.optimizer)
        scaler.update()
