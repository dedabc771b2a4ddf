"""What a step allocates, and what the plan takes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import gpu
import pytest
import torch
from cases import BF16, BY_NAME, F32, FAST_CASES, Case, dtype_id

pytestmark = pytest.mark.steps

LARGE_BYTES = 40 * 2**20  # above 32 MiB malloc gives memory back to the system at once


def prepared(case: Case, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """An optimizer after two steps, and all gradients as they were."""
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = case.make(params)
    optimizer.step()
    optimizer.step()
    return optimizer


def peak_growth(step: Callable[[], object]) -> int:
    """By how many bytes the resident memory rises above its present size during `step()`."""

    def resident(key: str) -> int:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return 1024 * int(found[1])

    ctypes.CDLL(None).malloc_trim(0)  # else what other tests have freed may be resident still, and be taken again
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def allocated(step: Callable[[], object]) -> int:
    """How many bytes of tensors are allocated during `step()`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())


@pytest.mark.below_python
def test_the_measures_see_an_allocation() -> None:
    for _ in range(2):  # the second time too: the memory of the first has gone back to the system
        assert peak_growth(lambda: torch.ones(LARGE_BYTES // 4)) > 0.9 * LARGE_BYTES
        assert peak_growth(lambda: None) < LARGE_BYTES // 16
    assert allocated(lambda: torch.ones(100)) == 400


@pytest.mark.below_python
@pytest.mark.parametrize("case", FAST_CASES, ids=str)
def test_no_tensor_is_allocated(case: Case) -> None:
    params = [torch.ones(n) for n in (1000, 20_000, 3)]
    assert allocated(prepared(case, params).step) == 0


@pytest.mark.parametrize("name", ["sgd-nesterov-clip", "rmsprop-centered-momentum", "adagrad", "adam-amsgrad", "lamb"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_id)  # a form of the loops each
def test_no_temporary_of_a_parameters_size(name: str, dtype: torch.dtype) -> None:
    p = torch.ones(LARGE_BYTES // dtype.itemsize, dtype=dtype)
    assert peak_growth(prepared(BY_NAME[name], [p]).step) < LARGE_BYTES // 16


def test_a_gradient_in_another_layout_is_copied_and_the_copy_let_go() -> None:
    p = torch.ones(30, 50)
    optimizer = prepared(BY_NAME["adam"], [p])
    p.grad = torch.ones(50, 30).t()
    for _ in range(3):
        assert allocated(optimizer.step) == p.nbytes


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "adam-amsgrad", "lamb"])
@pytest.mark.parametrize(
    "numels", [[1], [7], [10] * 1000, [10] * 5000, [3_000_000], [40_000] * 100], ids=lambda x: f"{x[0]}x{len(x)}"
)
def test_the_plan_is_small(name: str, numels: list[int]) -> None:
    optimizer = prepared(BY_NAME[name], [torch.ones(n) for n in numels])
    chunks = sum(-(-n // (16 * 1024)) for n in numels)
    rows = 256  # one group at one step count
    kept = 48  # of a parameter, where there are other threads of Python: references to its operands
    table = 96 if gpu.TEST_DEVICE != "cpu" else 0  # more of it: as it lies on the device
    assert optimizer._plan.memory() <= (368 + kept + table) * len(numels) + 32 * chunks + rows
