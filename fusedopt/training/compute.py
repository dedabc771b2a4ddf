"""How a network is computed: in 16 bits with a scale for the gradients, by which kernels, through `torch.compile`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is only imitated on a device: its instructions are missing, and it is slower than float32.

    False where there is no telling.
    """
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.11 has none
        return False
    has = torch.cpu.get_capabilities()
    return has.get("architecture") == "x86_64" and not (has.get("avx512_bf16") or has.get("amx_bf16"))


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


@contextmanager
def without_onednn() -> Iterator[None]:
    """Lets PyTorch's own kernels do on the CPU what oneDNN would do.

    oneDNN prepares each of its operations, at a cost that a few small images do not pay back.
    """
    # Not torch.backends.mkldnn.flags, which sets precision and determinism too, and warns of TF32.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


class CompileError(RuntimeError):
    """`torch.compile` does not work here; the message says why."""


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turns what `torch.compile` raises, at its first run as a rule, into a CompileError of one line."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n")[:2]).strip()  # who raises, and what
        raise CompileError(f"torch.compile does not work here ({reason}); train without it") from error
