"""docs/add_a_rule.md: in a copy of the sources that has what the page adds, the rule passes the tests of its cases."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.one_torch  # with another one the whole engine is built, and its steps are tested

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add_a_rule.md"
if not PAGE.exists():
    pytest.skip("a copy of the tree without its pages", allow_module_level=True)
BLOCKS = re.findall(r'^```(\w+) title="(.*?)"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)

# Only the baseline is compiled; other instruction sets have empty tables, which FUSEDOPT_ISA=default avoids.
REST = """
#include "cpu/cpu.h"
namespace fusedopt::cpu {
namespace avx2 { extern const Kernels kKernels{}; }
namespace avx512 { extern const Kernels kKernels{}; }
}
"""


def variables(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(folder), "FUSEDOPT_ISA": "default"}


def command(*arguments: object, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run([*map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def write_rule(folder: Path) -> None:
    """Does to a copy of the sources what the page says, but for what has been done already."""
    for language, name, text in BLOCKS:
        path = folder / name
        if language == "diff":
            for hunk in text.rstrip("\n").split("\n\n"):
                add(path, hunk.splitlines())
        else:
            path.write_text(text)


def add(path: Path, hunk: list[str]) -> None:
    """Adds the lines with a plus, beside those without one."""
    source = path.read_text()
    if all(line[1:].rstrip(" \\") in source for line in hunk if line[0] == "+"):
        return
    around = "".join(f"{line[1:]}\n" for line in hunk if line[0] == " ")
    assert source.count(around) == 1, f"{PAGE} adds lines at other ones, which {path.name} has not:\n{around}"
    path.write_text(source.replace(around, "".join(f"{line[1:]}\n" for line in hunk)))


def build(folder: Path) -> None:
    """Compiles the extension without optimization, the sources that include torch as one."""
    csrc = folder / "csrc"
    sources = [*sorted(csrc.glob("*.cpp")), csrc / "cpu" / "step.cpp"]
    (csrc / "all.cpp").write_text("".join(f'#include "{path.relative_to(csrc)}"\n' for path in sources) + REST)
    flags = ["-std=c++20", "-O0", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp", "-ffp-contract=off"]
    flags += ["-DTORCH_EXTENSION_NAME=_C", f"-DFUSEDOPT_TORCH={torch.__version__}"]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    flags += [f"-I{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    libraries = Path(torch.__file__).parent / "lib"
    links = [f"-L{libraries}", *(f"-l{name}" for name in ("c10", "torch", "torch_cpu", "torch_python"))]
    target = folder / "fusedopt" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    command("c++", *flags, csrc / "all.cpp", csrc / "cpu" / "baseline.cpp", *links, "-o", target, cwd=folder)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the rule, built."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("csrc", "fusedopt", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    write_rule(folder)
    write_rule(folder)  # as in a tree that has it
    build(folder)
    return folder


def test_the_steps_of_the_page_are_fused(copy: Path) -> None:
    printed = command(sys.executable, "try_signum.py", cwd=copy, **variables(copy))
    (script,) = (text for _, name, text in BLOCKS if name == "try_signum.py")
    assert printed.splitlines() == re.findall(r"^# -> (.*)$", script, re.MULTILINE)


def test_the_rule_of_the_page_passes_the_tests_that_its_cases_bring(copy: Path) -> None:
    line, _ = re.findall(r"^\.venv/bin/python (-m pytest .*)$", PAGE.read_text(), re.MULTILINE)  # the other: of pages
    output = command(sys.executable, *line.replace("-n 2 ", "").split(), cwd=copy, **variables(copy))
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) > 400, output
