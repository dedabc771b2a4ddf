"""What a build says where something is missing, and what a wheel says about itself. Nothing is compiled."""

import json
import os
import re
import subprocess
import sys
from email import message_from_string
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

from fusedopt import _C

ROOT = Path(__file__).parents[2]
if not (ROOT / "build_backend.py").exists():
    pytest.skip("a copy of the tree without its packaging files", allow_module_level=True)

HIDDEN = 'raise ModuleNotFoundError("No module named {0!r}", name={0!r})'
NO_HEADERS = """
import sysconfig
real = sysconfig.get_path
sysconfig.get_path = lambda name, *a, **k: "/nowhere" if name == "include" else real(name, *a, **k)
"""


def python(*arguments: object, first: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the sources, with modules in a folder that take the place of the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(first), "FUSEDOPT_CUDA": "0", **variables}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def refusal(*arguments: object, first: Path, **variables: str) -> str:
    """Returns the line that a build ends with."""
    done = python(*arguments, first=first, **variables)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("entry", [("setup.py", "--version"), ("-c", "import build_backend")])
def test_no_setuptools(tmp_path: Path, entry: tuple[str, str]) -> None:
    (tmp_path / "setuptools.py").write_text(HIDDEN.format("setuptools"))
    needs = "fusedopt needs setuptools 77 or later to build, and there is none: pip install setuptools"
    assert refusal(*entry, first=tmp_path) == needs


def test_old_setuptools(tmp_path: Path) -> None:
    (tmp_path / "setuptools" / "command").mkdir(parents=True)
    (tmp_path / "setuptools" / "__init__.py").write_text('__version__, setup = "65.5.0", None')
    (tmp_path / "setuptools" / "command" / "egg_info.py").write_text("egg_info = object")
    needs = "fusedopt needs setuptools 77 or later to build, not 65.5.0: pip install -U setuptools"
    assert refusal("setup.py", "--version", first=tmp_path) == needs


def test_no_torch_as_in_an_isolated_build(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(HIDDEN.format("torch"))
    line = refusal("setup.py", "--version", first=tmp_path)
    assert line.startswith("fusedopt compiles against the torch that is installed, and there is none here")
    assert line.endswith("pip install torch setuptools ninja && pip install --no-build-isolation .")


def test_a_torch_that_lacks_something_else_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(HIDDEN.format("sympy"))
    done = python("setup.py", "--version", first=tmp_path)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'sympy'"


def build(tmp_path: Path, **variables: str) -> str:
    folders = ("--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp")
    return refusal("setup.py", "-q", "build_ext", *folders, first=tmp_path, **variables)


@pytest.mark.one_torch
def test_no_compiler(tmp_path: Path) -> None:
    line = build(tmp_path, CXX="g++-nowhere")
    assert line.startswith("fusedopt cannot be built without a C++ compiler (g++-nowhere: No such file or directory); ")
    assert line.endswith("apt install g++, or set CXX")


@pytest.mark.one_torch
def test_an_old_compiler(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho \"c++: error: unrecognized option '-std=c++20'\" >&2\nexit 1\n")
    old.chmod(0o755)
    line = build(tmp_path, CXX=str(old))
    assert line.startswith(
        f"fusedopt cannot be built with {old} (c++: error: unrecognized option '-std=c++20'); it needs"
    )


@pytest.mark.one_torch
def test_no_headers_of_pythons(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_HEADERS)
    line = build(tmp_path)
    needs = "fusedopt needs Python's headers to build, and /nowhere/Python.h is missing: apt install python3-dev"
    assert line == needs


def test_an_editable_installation_is_a_path_that_type_checkers_follow() -> None:
    found = distribution("fusedopt")
    if json.loads(found.read_text("direct_url.json") or "{}").get("url") != ROOT.as_uri():
        pytest.skip("what is installed is no editable installation of this tree")
    (path,) = [file for file in found.files or () if file.suffix == ".pth"]
    assert Path(str(found.locate_file(path))).read_text().split() == [str(ROOT)]


def metadata(tmp_path: Path, **variables: str) -> Message:
    done = python("setup.py", "-q", "egg_info", "--egg-base", tmp_path, first=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    return message_from_string((tmp_path / "fusedopt.egg-info" / "PKG-INFO").read_text())


def test_a_wheel_for_elsewhere_says_what_it_was_built_for(tmp_path: Path) -> None:
    minor = ".".join(torch.__version__.split(".")[:2])
    found = metadata(tmp_path, FUSEDOPT_LOCAL_VERSION="1")
    assert found["Version"].endswith(f"+torch{minor}.cpu")
    assert f"torch=={minor}.*" in found.get_all("Requires-Dist", [])
    if _C.GPU == "cuda":
        cuda = metadata(tmp_path, FUSEDOPT_LOCAL_VERSION="1", FUSEDOPT_CUDA="1")
        assert cuda["Version"].endswith(f"+torch{minor}.cu{str(torch.version.cuda).replace('.', '')}")


def test_what_is_installed_here_takes_any_torch_and_links_lead_somewhere(tmp_path: Path) -> None:
    found = metadata(tmp_path)
    assert "+" not in found["Version"]
    assert {"torch>=2.11", "numpy", "typing_extensions>=4.4"} == {
        text for text in found.get_all("Requires-Dist", []) if "extra" not in text
    }
    readme = str(found.get_payload())
    links = re.findall(r"\]\(([^)]*)\)", readme)
    assert links
    assert all(link.startswith(("http://", "https://", "#")) for link in links)
    for text in ("docs/distributed.md", "results"):  # what is linked is still named
        assert text in readme


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="a copy of the tree without it")
def test_ci_runs_all_that_there_is() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    made = {target for line in lines if line.startswith("make ") for target in line.split()[1:]}
    assert {"lint", "docs", "test", "integrations"} <= made
    assert any(line.startswith("FUSEDOPT_CUDA=0 ") and " test-cpu " in line for line in lines)
