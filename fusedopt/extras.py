"""What the commands, reports and examples need beyond torch and numpy, and what is said where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MODULES = (
    *("typer", "tqdm", "matplotlib", "PIL", "jinja2", "torchmetrics", "tensorboard", "captum", "optuna"),
    *("onnx", "onnxscript", "onnxruntime"),
)


def missing(name: str) -> str:
    """Says that a module is not installed, and which command installs it."""
    return f"{name} is not installed; pip install 'fusedopt[examples]'"


@contextmanager
def named_if_missing() -> Iterator[None]:
    """Says in the error of an import which command installs what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in MODULES:
            raise
        raise ModuleNotFoundError(missing(error.name), name=error.name) from error
