"""Training without oneDNN, which prepares each of its operations at a cost that a few small images do not pay back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_onednn() -> Iterator[None]:
    """Lets PyTorch's own kernels do on the CPU what oneDNN would do."""
    # Not torch.backends.mkldnn.flags, which sets precision and determinism too, and warns of TF32.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)
