"""The averages of the weights that steps keep, put into the model for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fusedopt.optim._codecs import AVERAGE
from fusedopt.optim._shards import params_of
from fusedopt.sharding import is_dtensor, local

if TYPE_CHECKING:
    from fusedopt.optim._fused import FusedStep


@contextmanager
def averaged_weights(optimizer: FusedStep) -> Iterator[None]:
    """Within the block the parameters have the values of their averages, which `ema_decay` has steps keep.

    Parameters without one, which have had no gradient yet, stay as they are; buffers of a model, as those of batch
    normalisation, are none of the optimizer's. Afterwards, and after an exception, all is as it was, bit for bit,
    master weights included. Takes the memory of one more copy of the parameters meanwhile.

    Raises:
        ValueError: no group has an `ema_decay`.
        RuntimeError: on a step within the block, or on entering it again there.
    """
    if all(group.get("ema_decay") is None for group in optimizer.param_groups):
        raise ValueError("there are no averaged weights: make the optimizer with ema_decay=0.999, say")
    if optimizer._averaged:
        raise RuntimeError("the parameters have the values of their averages already")
    params = [p for p in params_of(optimizer) if AVERAGE in optimizer.state.get(p, {})]
    kept = [p.detach().clone(memory_format=torch.preserve_format) for p in params]
    optimizer._averaged = True
    try:
        with torch.no_grad():
            for p in params:
                _copy(optimizer.state[p][AVERAGE], p)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(params, kept, strict=True):
                _copy(value, p)
        optimizer._averaged = False


def _copy(value: torch.Tensor, to: torch.Tensor) -> None:
    local(to).copy_(local(value))
    if is_dtensor(to):
        torch.autograd.graph.increment_version(to)
