"""What all tests share."""

from collections.abc import Iterator
from pathlib import Path

import gpu
import pytest
import torch
from virtual_gpu import VirtualGpu

collect_ignore = [] if gpu.REAL else ["test_real_gpu.py"]

try:
    import hypothesis
except ImportError:  # on a machine with a GPU there may be no more than pytest, and no test there needs it
    pass
else:
    # The same examples on every run, and no deadline: how fast a busy machine is decides nothing.
    hypothesis.settings.register_profile("fusedopt", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("fusedopt")


def pytest_configure(config: pytest.Config) -> None:
    # Raised by what hypothesis imports to report a failure: as an error it would end the run without the report.
    config.addinivalue_line("filterwarnings", "ignore:mypy_extensions.TypedDict is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def default_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """The device that the tests run on; those of the CUDA back end name theirs."""
    if gpu.TEST_DEVICE != "cpu" and not request.module.__name__.startswith("test_gpu"):
        torch.set_default_device(gpu.TEST_DEVICE)
    yield
    torch.set_default_device(None)


@pytest.fixture(scope="session")
def all_tensors() -> VirtualGpu:
    from fusedopt.optim import _fused

    _fused._BLIND.add(VirtualGpu)
    return VirtualGpu()


@pytest.fixture(autouse=True)
def virtual_gpu(request: pytest.FixtureRequest, all_tensors: VirtualGpu) -> Iterator[None]:
    """Where the GPU is the CPU, tests that mix the two fail all the same."""
    if not gpu.ON_CPU or request.node.get_closest_marker("below_python"):
        yield
        return
    with all_tensors:
        yield
    all_tensors.forget()


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that call torch.set_num_threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing by more threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small data set; the run folders come beside it."""
    from command_line import write_fashion  # which needs typer

    write_fashion(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path
