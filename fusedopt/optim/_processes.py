"""Parameters that are spread over processes although each looks like any other tensor.

A DTensor says how it is sharded. What FSDP1, ZeroRedundancyOptimizer and DeepSpeed hand to an optimizer does not, and a
norm over what is here would be that of a part. Here is what can be found out, and what an optimizer has to be told.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

HELP = "see docs/distributed.md"


@dataclass(frozen=True)
class Spread:
    """Where the rest of the parameters is.

    Attributes:
        group: the processes among which they are shared out.
        pieces: whether each process has a piece of each tensor; otherwise it has some of the tensors, whole.
        everywhere: ids of the parameters that are whole on every process, which count once.
    """

    group: Any
    pieces: bool
    everywhere: frozenset[int] = frozenset()

    def total(self, sums: list[float]) -> list[float]:
        """Adds up sums over all processes, the same on each. Every process has to come here, whatever it has."""
        return self.reduce(torch.tensor(sums, dtype=torch.float64, device="cpu")).tolist()

    def reduce(self, sums: Tensor) -> Tensor:
        """As `total`, without waiting where the sums are on a GPU."""
        nccl = dist.get_backend(self.group) == "nccl" and sums.device.type == "cpu"
        there = sums.to(torch.device("cuda", torch.cuda.current_device())) if nccl else sums.clone()
        dist.all_reduce(there, group=self.group)
        return there.to(sums.device)


def is_flattened(param: Tensor) -> bool:
    """Whether FullyShardedDataParallel (FSDP1) made it part of a flat parameter, of which each process has a part."""
    return bool(getattr(param, "_fsdp_flattened", False))


def find_spread(params: list[Tensor]) -> Spread | None:
    """What can be found out about the parameters of an optimizer that is being made. None: nothing is spread.

    Raises:
        ValueError: they are shared out over different groups of processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if (zero := _zero_redundancy()) is not None:
        return Spread(zero.process_group, pieces=False) if zero.world_size > 1 else None
    return _fully_sharded(params) if any(map(is_flattened, params)) else None


def _zero_redundancy() -> Any:
    """The ZeroRedundancyOptimizer whose constructor is being run, which tells its optimizer nothing of itself."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    if module is None:
        return None
    frame = sys._getframe().f_back
    while frame is not None:
        # Not the f_locals of any other frame: until Python 3.13 that keeps what a caller deletes later.
        if frame.f_globals is vars(module) and isinstance(
            owner := frame.f_locals.get("self"), module.ZeroRedundancyOptimizer
        ):
            return owner
        frame = frame.f_back
    return None


def _fully_sharded(params: list[Tensor]) -> Spread | None:
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    # Nothing leads from a parameter to the handle that knows its processes.
    handles = [thing for thing in gc.get_objects() if type(thing) is FlatParamHandle]
    group_of: dict[int, Any] = {}
    for handle in handles:
        sharded = handle.uses_sharded_strategy and handle.world_size > 1
        for param in (handle.flat_param, *(handle.flat_param._params or ())):
            group_of[id(param)] = handle.process_group if sharded else None
    groups = [group_of.get(id(p)) for p in params]
    sharding = {id(group): group for group in groups if group is not None}
    if len(sharding) > 1:
        raise ValueError(
            "FullyShardedDataParallel shards these parameters over different groups of processes; make an optimizer "
            f"for each ({HELP})"
        )
    everywhere = frozenset(id(p) for p, group in zip(params, groups, strict=True) if group is None)
    return Spread(next(iter(sharding.values())), pieces=True, everywhere=everywhere) if sharding else None


def refuse_merged(optimizer: object, params: Iterable[Tensor]) -> None:
    """Raises where tensors have been merged whose norms are wanted one by one.

    Raises:
        ValueError: with what to do.
    """
    if any(getattr(p, "_is_flat_param", False) and p._num_params > 1 for p in params):  # type: ignore[attr-defined]
        raise ValueError(
            f"{type(optimizer).__name__} takes norms of single tensors, and FullyShardedDataParallel has merged "
            f"several into a flat one; wrap with use_orig_params=True, or use fully_shard ({HELP})"
        )
