"""Watching a model train: what its gradients and parameters were, step after step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from fusedopt import sharding
from fusedopt.gradients.history import History
from fusedopt.optim import refuse_in_backward


class capture:
    """Records a model's gradients and parameters at the steps of any optimizer, while the `with` block runs.

        with fusedopt.capture(model) as history:
            train(model, optimizer)
        history.plot().savefig("history.png")

    A record is taken at the start of `optimizer.step()`: of the gradients that the step is given, after clipping by
    the caller and before step hooks such as `GradientNoise`, and of the parameters that it is about to update. Where a
    `GradScaler` leaves unscaling to the step, the gradients are recorded unscaled. A loop that steps in another way
    calls `record()` itself. With a closure, the gradients
    are those that were there when `step(closure)` was called.

    Records stay on the parameters' device, in memory that is taken once: at most 4 * max_records * max_values bytes for
    the gradients of a tensor and the same for its values. When `max_records` are full, every second one is dropped and
    from then on half as many are taken, so that the whole training is covered, evenly, however long it is. Nothing in
    a record waits for the device. Of a DTensor every process has the records of the whole tensor: a record is one
    collective for each process group, in which every process has to take part.

    Args:
        model: what trains.
        layers: names of modules (as in `named_modules()`) or of parameters; None is all of the model.
        gradients, parameters: whether to record them.
        every: steps between two records, at the beginning.
        max_records: the most records kept, an even number of at least 2.
        max_values: the most elements recorded of each tensor; of a larger one, the same elements each time, drawn
            evenly over it. None records all.
        history: of an earlier part of the training, whose records before `step` are taken over.
        step: the number of the first step to come.

    Attributes:
        history: what has been recorded.
        step: how many steps there have been.

    Raises:
        ValueError: a layer does not exist or nothing is left to record, a number is out of range, or the history is of
            other parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        gradients: bool = True,
        parameters: bool = True,
        every: int = 1,
        max_records: int = 200,
        *,
        max_values: int | None = 1000,
        history: History | None = None,
        step: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if max_records < 2 or max_records % 2:
            raise ValueError(f"max_records must be an even number of at least 2, not {max_records}")
        if max_values is not None and max_values < 1:
            raise ValueError(f"max_values must be at least 1, or None for all, not {max_values}")
        if not (gradients or parameters):
            raise ValueError("there is nothing to record with gradients=False and parameters=False")
        self._params = _selected(model, layers)
        self._members = {id(p) for p in self._params.values()}
        self._indices = {name: _sample(p, max_values) for name, p in self._params.items()}
        self._shards = {n: _shard(p, self._indices[n]) for n, p in self._params.items() if sharding.is_dtensor(p)}
        self._rows: dict[str, dict[str, Tensor]] = {"gradients": {}, "parameters": {}}
        self._kinds = [kind for kind, wanted in (("gradients", gradients), ("parameters", parameters)) if wanted]
        self._capacity, self._every = max_records, every
        self.step = step
        self.history = History()
        if history is not None:
            self._take_over(history)
        self._hook: RemovableHandle | None = None

    def __enter__(self) -> History:
        """Begins to record, and returns the history that grows from now on.

        Raises:
            RuntimeError: it records already.
        """
        if self._hook is not None:
            raise RuntimeError("this capture records already: leave its `with` block first, or make another capture")
        self._hook = register_optimizer_step_pre_hook(self._before_step)
        return self.history

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops recording; the history stays."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(id(p) in self._members for group in optimizer.param_groups for p in group["params"]):
            if "gradients" in self._kinds:
                refuse_in_backward(optimizer, "fusedopt.capture")
            self.record(getattr(optimizer, "grad_scale", None))

    @torch.no_grad()
    def record(self, grad_scale: Tensor | None = None) -> None:
        """Counts a step, and records it if it is its turn. Called by the steps of torch optimizers.

        Args:
            grad_scale: what the gradients are to be divided by.
        """
        while self.step % self._every == 0 and len(self.history.steps) >= self._capacity:
            self._thin_out()
        if self.step % self._every == 0:
            row = len(self.history.steps)
            self.history.steps.append(self.step)
            written = [
                (name, self._write(kind, name, row, param, grad_scale))
                for kind in self._kinds
                for name, param in self._params.items()
            ]
            sharding.all_reduce((self._shards[name].groups, values) for name, values in written if name in self._shards)
        self.step += 1

    def _take_over(self, history: History) -> None:
        kept = {step: row for row, step in enumerate(history.steps) if step < self.step}
        if not kept:
            return
        self._every = max(self._every, min((after - step for step, after in pairwise(kept)), default=1))
        while len(kept) > self._capacity:
            self._every *= 2
            kept = {step: row for step, row in kept.items() if step % self._every == 0}
        for kind in self._kinds:
            found: dict[str, Tensor] = getattr(history, kind)
            for name, param in self._params.items():
                rows = self._memory(name, param)
                if found.keys() != self._params.keys() or found[name].shape[1:] != rows.shape[1:]:
                    raise ValueError(f"holds other parameters than those to record, such as the {kind} of {name}")
                rows[: len(kept)] = found[name][list(kept.values())].to(rows)
                self._rows[kind][name] = rows
                getattr(self.history, kind)[name] = rows[: len(kept)]
        self.history.steps = list(kept)

    def _memory(self, name: str, param: nn.Parameter) -> Tensor:
        index = self._indices[name]
        count = param.numel() if index is None else len(index)
        dtype = torch.promote_types(param.dtype, torch.float32)
        return torch.empty(self._capacity, count, dtype=dtype, device=param.device)

    def _write(self, kind: str, name: str, row: int, param: nn.Parameter, grad_scale: Tensor | None) -> Tensor:
        """Writes what is here of a record, zeros where it is elsewhere."""
        index, shard = self._indices[name], self._shards.get(name)
        rows = self._rows[kind].get(name)
        if rows is None:
            rows = self._rows[kind][name] = self._memory(name, param)
        record = rows[row]
        values = param.detach() if kind == "parameters" else param.grad
        if values is not None:
            values = values.to_dense() if values.layout != torch.strided else values
            values = sharding.local(sharding.placed(values, param) if shard else values).reshape(-1)
        if shard:
            record.zero_()
            record[shard.columns] = torch.nan if values is None else values[shard.elements].to(record.dtype)
        elif values is None:
            record.fill_(torch.nan)
        else:
            record.copy_(values if index is None else values[index])
        if grad_scale is not None and kind == "gradients":
            record /= grad_scale.to(record.device)
        getattr(self.history, kind)[name] = rows[: row + 1]
        return record

    def _thin_out(self) -> None:
        self._every *= 2
        kept = [row for row, step in enumerate(self.history.steps) if step % self._every == 0]
        self.history.steps[:] = [self.history.steps[row] for row in kept]
        for kind in self._kinds:
            for name, rows in self._rows[kind].items():
                rows[: len(kept)] = rows[kept]
                getattr(self.history, kind)[name] = rows[: len(kept)]


def _selected(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Parameter]:
    if isinstance(layers, str):
        layers = [layers]
    params = dict(model.named_parameters())
    if layers is not None:
        for layer in layers:
            if not any(name == layer or name.startswith(f"{layer}.") for name in params):
                known = ", ".join(
                    name for name, module in model.named_modules() if name and len(list(module.parameters()))
                )
                raise ValueError(f"the model has no layer {layer!r} with parameters; it has {known}")
        params = {n: p for n, p in params.items() if any(n == layer or n.startswith(f"{layer}.") for layer in layers)}
    if lazy := [name for name, p in params.items() if is_lazy(p)]:
        raise ValueError(f"{lazy[0]} has no shape yet; run one batch through the model first")
    params = {name: p for name, p in params.items() if p.is_floating_point() and p.numel()}
    if not params:
        raise ValueError("the model has no real floating-point parameters to record")
    return params


def _sample(param: nn.Parameter, count: int | None) -> Tensor | None:
    """Flat indices of the elements to record, one drawn from each of `count` equal parts; None for all."""
    if count is None or param.numel() <= count:
        return None
    offsets = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = (torch.arange(count) + offsets) * (param.numel() / count)
    return positions.long().clamp_(max=param.numel() - 1).to(param.device)


class _Shard(NamedTuple):
    """Which elements of a DTensor's record are here, where in the record they belong, and who has the others."""

    elements: Tensor
    columns: Tensor
    groups: sharding.Groups


def _shard(param: nn.Parameter, index: Tensor | None) -> _Shard:
    numbers = torch.arange(param.numel()).view(param.shape)
    here = sharding.local_part(numbers, param).reshape(-1)
    wanted = numbers.reshape(-1) if index is None else index.cpu()
    elements = torch.isin(here, wanted).nonzero().reshape(-1)
    columns = torch.searchsorted(wanted, here[elements])
    return _Shard(elements.to(param.device), columns.to(param.device), sharding.groups_of(param))
