"""What a step allocates, and what the plan takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cases import BY_NAME, CASES, F32, HALVES, Case, dtype_id

import fusedopt

LARGE = 4 * 2**20  # elements: 16 MiB of float32
MIB = 2**20


def prepared(case: Case, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """An optimizer after two steps, and all gradients as they were."""
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = case.make(params)
    optimizer.step()
    optimizer.step()
    return optimizer


def peak_growth(step: object) -> int:
    """By how many bytes the resident memory rises above its present size during `step()`."""

    def resident(key: str) -> int:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return 1024 * int(found[1])

    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = resident("VmRSS")
    step()  # type: ignore[operator]
    return resident("VmHWM") - before


def test_peak_growth_sees_an_allocation() -> None:
    assert peak_growth(lambda: torch.ones(LARGE)) > 15 * MIB
    assert peak_growth(lambda: None) < MIB


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_tensor_is_allocated(case: Case) -> None:
    params = [torch.ones(n) for n in (1000, 20_000, 3)]
    optimizer = prepared(case, params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer._step()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated < 64, "a tensor was allocated"


@pytest.mark.parametrize("name", ["sgd-nesterov-clip", "rmsprop-centered-momentum", "adagrad", "adam-amsgrad", "lamb"])
@pytest.mark.parametrize("dtype", [F32, *HALVES], ids=dtype_id)
def test_no_temporary_of_a_parameters_size(name: str, dtype: torch.dtype) -> None:
    p = torch.ones(LARGE, dtype=dtype)
    optimizer = prepared(BY_NAME[name], [p])
    assert peak_growth(optimizer.step) < p.nbytes // 8


def test_a_gradient_in_another_layout_is_copied_for_one_step_only() -> None:
    p = torch.ones(2048, LARGE // 2048)
    p.grad = torch.ones(LARGE // 2048, 2048).t()
    optimizer = fusedopt.Adam([p])
    optimizer.step()
    resting = peak_growth(lambda: None)
    assert peak_growth(optimizer.step) > p.nbytes // 2
    del optimizer
    assert resting < MIB


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "adam-amsgrad", "lamb"])
@pytest.mark.parametrize(
    "numels", [[1], [7], [10] * 1000, [10] * 5000, [3_000_000], [40_000] * 100], ids=lambda x: f"{x[0]}x{len(x)}"
)
def test_the_plan_is_small(name: str, numels: list[int]) -> None:
    optimizer = prepared(BY_NAME[name], [torch.ones(n) for n in numels])
    chunks = sum(-(-n // (16 * 1024)) for n in numels)
    rows = 256  # one group at one step count
    assert optimizer._plan.memory() <= 256 * len(numels) + 32 * chunks + rows
