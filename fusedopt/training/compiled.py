"""`torch.compile`, with its failures in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
