"""What an import says where the compiled extension is missing, or was built for something else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedopt
from fusedopt import _C

PACKAGE = Path(fusedopt.__file__).parent
HERE = f"torch {torch.__version__}"
BUILD = "pip install --no-build-isolation --no-deps --force-reinstall . (in fusedopt's source folder)"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without an extension."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "fusedopt", ignore=shutil.ignore_patterns("*.so", "__pycache__")))


def failure(package: Path) -> str:
    """Imports the copy, and returns the last line of what is printed."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", "import fusedopt"]
    done = subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


def copy_extension(package: Path, old: bytes = b"", new: bytes = b"") -> None:
    content = Path(_C.__file__).read_bytes()
    assert old in content
    assert len(old) == len(new)
    (package / Path(_C.__file__).name).write_bytes(content.replace(old, new))


def test_a_folder_without_an_extension_says_so(package: Path) -> None:
    where = f"fusedopt's extension is not built in {package}; build it: "
    assert failure(package) == f"ImportError: {where}{BUILD}"
    (package.parent / "csrc").mkdir()
    (package.parent / "setup.py").touch()
    source = f"pip install --no-build-isolation --no-deps -e {package.parent}"
    assert failure(package) == f"ImportError: {where}{source}"


def test_one_for_another_python_is_named(package: Path) -> None:
    (package / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    assert "another Python (_C.cpython-39-x86_64-linux-gnu.so); build it for this one: pip" in failure(package)


MARK = f"fusedopt._C for torch {torch.__version__}".encode()
OTHER = MARK.replace(torch.__version__[:2].encode(), b"0.")


def test_one_that_loads_but_was_built_for_another_torch_is_refused(package: Path) -> None:
    copy_extension(package, MARK, OTHER)
    built = OTHER.decode().partition("for ")[2]
    told = f"built for {built}, but this is {HERE}; build it again: {BUILD}"
    assert failure(package) == f"ImportError: fusedopt's extension was {told}"


@pytest.mark.parametrize("other", [True, False])
def test_one_that_does_not_load_names_both_versions_and_the_reason(package: Path, other: bool) -> None:
    copy_extension(package, b"libtorch_cpu.so", b"libtorch_cpx.so")
    (path,) = package.glob("*.so")
    if other:
        path.write_bytes(path.read_bytes().replace(MARK, OTHER))
    reason = "(libtorch_cpx.so: cannot open shared object file: No such file or directory)"
    line = failure(package)
    if other:
        assert f"but this is {HERE}; build it again: {BUILD} {reason}" in line
    else:
        assert line == f"ImportError: fusedopt's extension cannot be loaded {reason}; build it again: {BUILD}"


def test_one_without_a_mark_is_of_another_version(package: Path) -> None:
    copy_extension(package, b"BUILT_FOR\0", b"BUILD_FOR\0")
    assert f"built for another version of fusedopt, but this is {HERE}" in failure(package)


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    assert set(dir(fusedopt)) == {*fusedopt.__all__, "__version__", "optim"}
    for name in dir(fusedopt):
        getattr(fusedopt, name)


def test_info_names_the_torch_that_it_was_built_for() -> None:
    assert fusedopt.info()["built for torch"].split(".")[:2] == torch.__version__.split(".")[:2]
