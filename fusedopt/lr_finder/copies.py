"""Copies of tensors, in memory or in a file."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor


class Copies:
    """Tensors, in memory or in a file that goes with this object.

    Args:
        tensors: the copies.
        folder: where the file is made; None keeps them in memory, each on its own device.
    """

    def __init__(self, tensors: list[Tensor], folder: Path | None) -> None:
        self._tensors, self._path = tensors, None
        if folder is not None:
            handle, name = tempfile.mkstemp(prefix="fusedopt-lr-finder-", suffix=".pt", dir=folder)
            os.close(handle)
            self._tensors, self._path = [], Path(name)
            weakref.finalize(self, self._path.unlink, missing_ok=True)
            torch.save(tensors, self._path)

    def load(self) -> list[Tensor]:
        """Returns them; from a file, on the CPU."""
        if self._path is None:
            return self._tensors
        tensors: list[Tensor] = torch.load(self._path, map_location="cpu", weights_only=True)
        return tensors
