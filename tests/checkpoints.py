"""What the tests of checkpoints keep, and how they read a folder and a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusedopt


class State:
    """A number to keep."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parts(model: nn.Module, cls: type[torch.optim.Optimizer] = fusedopt.AdamW, groups: int = 1) -> dict[str, Any]:
    params = list(model.parameters())
    return {"model": model, "optimizer": cls([{"params": params[i::groups]} for i in range(groups)], lr=0.1)}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
