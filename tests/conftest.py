"""What all tests share."""

import gc
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path

import gpu
import pytest
import torch
from virtual_gpu import VirtualGpu

# What torch puts into the environment when it compiles or profiles for the first time.
OF_TORCH = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "DISABLE_CUPTI_LAZY_REINIT", "TEARDOWN_CUPTI"}
OF_TORCH |= {"_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"}
# torch.manual_seed keeps, for a GPU that may come, a record of where it was called: that takes longer than most steps.
seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
collect_ignore = [] if gpu.REAL else ["csrc/test_real_gpu.py"]

try:
    import hypothesis
except ImportError:  # on a machine with a GPU there may be no more than pytest, and no test there needs it
    pass
else:
    # The same examples on every run, and no deadline: how fast a busy machine is decides nothing.
    hypothesis.settings.register_profile("fusedopt", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("fusedopt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", default="0", help="torch's before each test: a number, or random; a failure names it")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed == "random":  # in each worker another one
        config.option.seed = str(random.SystemRandom().randrange(2**32))
    # Raised by what hypothesis imports to report a failure: as an error it would end the run without the report.
    config.addinivalue_line("filterwarnings", "ignore:mypy_extensions.TypedDict is deprecated:DeprecationWarning")


def pytest_collection_finish() -> None:
    """Keeps Python's collector from looking through the tests themselves each time, which are many."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"--seed {item.config.option.seed}"))
    return report


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    seed(int(request.config.option.seed))


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a test leaves in the environment, others would run in, and the processes that they start."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    changed -= OF_TORCH | {"PYTEST_CURRENT_TEST"}
    if changed:
        os.environ.clear()
        os.environ.update(before)
        pytest.fail(f"left another value in os.environ: {', '.join(sorted(changed))}")


@pytest.fixture(autouse=True, scope="module")
def default_device() -> Iterator[None]:
    """The device that the tests run on."""
    if gpu.TEST_DEVICE != "cpu":
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
