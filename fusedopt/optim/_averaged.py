"""The averages of the weights that steps keep, put into the model for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusedopt.optim._base import Base
from fusedopt.optim._codecs import AVERAGE
from fusedopt.optim._shards import params_of
from fusedopt.sharding import is_dtensor, local, reshard


@contextmanager
def averaged_weights(optimizer: Base, model: nn.Module | None = None) -> Iterator[None]:
    """Within the block the parameters have the values of their averages, which `ema_decay` has steps keep.

    Parameters without one, which have had no gradient yet, stay as they are; buffers of a model, as those of batch
    normalisation, are none of the optimizer's. Afterwards, and after an exception, all is as it was, bit for bit,
    master weights included. Takes the memory of one more copy of the parameters meanwhile.

    Args:
        model: needed where `fully_shard` was called on it: parameters that it has gathered are to be gathered again.

    Raises:
        ValueError: no group has an `ema_decay`; or parameters are DTensors, and there is no model.
        RuntimeError: on a step within the block, on a copy of the optimizer there, or on entering it again there, or
            within a step; afterwards, where a parameter has got another shape, which stays as it is then.
    """
    if all(group.get("ema_decay") is None for group in optimizer.param_groups):
        raise ValueError("there are no averaged weights: make the optimizer with ema_decay=0.999, say")
    params = [p for p in params_of(optimizer) if AVERAGE in optimizer.state.get(p, {})]
    if model is None and any(map(is_dtensor, params)):
        raise ValueError("there are DTensors: say averaged_weights(model), so that whole parameters are gathered again")
    turn = optimizer.__dict__.setdefault("_turn", threading.RLock())  # another thread's step comes to its end first
    entered = False
    try:
        with turn:
            if optimizer._averaged or optimizer._stepping:
                raise RuntimeError("averaged_weights() was entered within itself, or within a step")
            kept = [p.detach().clone(memory_format=torch.preserve_format) for p in params]
            entered = optimizer._averaged = True
        _put([optimizer.state[p][AVERAGE] for p in params], params, model)
        yield
    finally:
        if entered:
            with turn:
                try:
                    _put(kept, params, model)
                except KeyboardInterrupt:  # half way
                    _put(kept, params, model)
                    raise
                finally:
                    optimizer._averaged = False


@torch.no_grad()
def _put(values: list[Tensor], params: list[Tensor], model: nn.Module | None) -> None:
    refused = []
    for value, p in zip(values, params, strict=True):
        try:
            local(p).copy_(local(value))
            if is_dtensor(p):
                torch.autograd.graph.increment_version(p)
        except RuntimeError as error:  # of one that was given another shape meanwhile: the others count all the same
            refused.append(error)
    if model is not None:
        reshard(model)
    torch.clear_autocast_cache()  # which has casts of what was there before
    if refused:
        raise refused[0]
