"""Training without oneDNN, which prepares each of its operations at a cost that a few small images do not pay back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_onednn() -> Iterator[None]:
    """Lets PyTorch's own kernels do on the CPU what oneDNN would do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # which nobody asked for
        with torch.backends.mkldnn.flags(enabled=False):
            yield
