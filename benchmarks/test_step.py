"""The cases of ``step.py`` under pytest-benchmark: ``pytest benchmarks``."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fusedopt.benchmark.implementations import CASES, DEFAULT_CASES
from fusedopt.benchmark.parameter_sets import SETS


@pytest.mark.benchmark(disable_gc=True, warmup=True, warmup_iterations=2, max_time=0.3)
@pytest.mark.parametrize(
    ("optimizer", "implementation"),
    [(name, implementation) for name in DEFAULT_CASES for implementation in CASES[name].factories()],
)
@pytest.mark.parametrize("parameter_set", ["lenet", "small"])
def test_step(benchmark: BenchmarkFixture, parameter_set: str, optimizer: str, implementation: str) -> None:
    benchmark.group = f"{optimizer} {parameter_set}"
    parameters = SETS[parameter_set].parameters(torch.float32, torch.device("cpu"))
    step = CASES[optimizer].factories()[implementation](parameters).step
    step()
    benchmark(step)
