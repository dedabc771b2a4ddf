"""Parameters that are spread over processes although they look like any other tensor."""

from __future__ import annotations

from torch import Tensor


def is_flattened(param: Tensor) -> bool:
    """Whether FullyShardedDataParallel (FSDP1) made it part of a flat parameter, of which each process has a part."""
    return bool(getattr(param, "_fsdp_flattened", False))
