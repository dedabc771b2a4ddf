"""What Python does in a step: the same for one tensor and for a thousand, in every mode."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import gpu
import pytest
import torch
from cases import Case
from pair import each_class
from torch import Tensor
from torch.optim import Optimizer

from fusedopt import _C

pytestmark = pytest.mark.steps

ON_GPU = pytest.param("capturable"), pytest.param("scaled"), pytest.param("scaled-clip")
MODES = ["plain", "clip", *(ON_GPU if _C.GPU == gpu.TEST_DEVICE_TYPE else ())]


def instructions(call: Any) -> int:
    """How many of Python's instructions a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def warm(case: Case, mode: str, tensors: int) -> Optimizer:
    params = [torch.ones(2, device=gpu.TEST_DEVICE).requires_grad_() for _ in range(tensors)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = case.make(params, max_grad_norm=1.0 if "clip" in mode else None)
    optimizer.param_groups[0]["capturable"] = mode == "capturable"
    if "scaled" in mode:
        optimizer.grad_scale = torch.ones((), device=gpu.TEST_DEVICE)  # type: ignore[attr-defined]
        optimizer.found_inf = torch.zeros((), device=gpu.TEST_DEVICE)  # type: ignore[attr-defined]
    for _ in range(3):
        optimizer.step()
    return optimizer


def test_instructions_are_counted() -> None:
    def loop(n: int) -> list[Tensor]:
        return [t for t in range(n)]

    assert instructions(lambda: loop(1000)) - instructions(lambda: loop(10)) > 1000


@each_class
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_done_for_each_tensor(case: Case, mode: str) -> None:
    few, many = (warm(case, mode, tensors) for tensors in (3, 300))
    assert {e.path for e in many.explain()} == {"fused"}  # type: ignore[attr-defined]
    assert instructions(few.step) == instructions(many.step)
