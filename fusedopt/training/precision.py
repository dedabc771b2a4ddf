"""Mixed precision: what runs in 16 bits, and the scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Runs a model under `torch.autocast`, or as it is.

    Args:
        name: a key of `DTYPES`; None runs the model in its own precision.
        device: where it runs.
        cache: keeps the 16-bit copies of the weights until the end of a forward pass. Not where it is captured.

    Attributes:
        scaler: a `torch.amp.GradScaler`, which does nothing unless float16 needs it.
    """

    def __init__(self, name: str | None, device: torch.device, *, cache: bool = True) -> None:
        self._dtype, self._device, self._cache = DTYPES[name] if name else None, device, cache
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the scores for a batch of images: 16-bit ones as float32, so that the loss is computed in it."""
        scores: Tensor
        if self._dtype is None:
            scores = model(images)
            return scores
        with torch.autocast(self._device.type, self._dtype, cache_enabled=self._cache):
            scores = model(images)
        return scores.float()
