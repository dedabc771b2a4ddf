"""docs/add_a_rule.md: its code is compiled in a copy of the sources, and steps as a loop in plain PyTorch does."""

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
BLOCKS = dict(re.findall(r'^```\w+ title="(.*?)"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL))

# Only the baseline is compiled; other instruction sets have empty tables, which FUSEDOPT_ISA=default avoids.
REST = """
#include "cpu/cpu.h"
namespace fusedopt::cpu {
namespace avx2 { extern const Kernels kKernels{}; }
namespace avx512 { extern const Kernels kKernels{}; }
}
"""

COMPARE = """
import contextlib

import torch
import fusedopt
from fusedopt.optim.signum import Signum


def compare(dtype, tolerance, path="fused", **options):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in (1, 1000, 70_001)]
    params = [torch.nn.Parameter(p.clone()) for p in start]
    signum = Signum(params, lr=0.125, **options)
    weights, means = [p.double().clone() for p in start], [torch.zeros_like(p, dtype=torch.float64) for p in start]
    for _ in range(3):
        for p, w, m in zip(params, weights, means):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            g = -p.grad.double() if options.get("maximize") else p.grad.double()
            m.copy_(signum.defaults["momentum"] * m + (1 - signum.defaults["momentum"]) * g)
            w -= 0.125 * (m.sign() + signum.defaults["weight_decay"] * w)
        with fusedopt.native() if path == "torch" else contextlib.nullcontext():
            signum.step()
    assert {row.path for row in signum.explain()} == {path}
    assert max((w - first.double()).abs().max() for w, first in zip(weights, start)) > 0.3
    for p, w, m in zip(params, weights, means):
        assert (p.double() - w).abs().max() < tolerance
        assert (signum.state[p]["exp_avg"].double() - m).abs().max() < tolerance


for options in ({}, {"weight_decay": 0.25}, {"maximize": True, "momentum": 0.0}):
    compare(torch.float32, 1e-5, **options)
    compare(torch.float64, 1e-14, **options)
    compare(torch.float64, 1e-14, path="torch", **options)
    compare(torch.bfloat16, 0.06, **options | {"momentum": 0.0})
print("agrees")
"""


def command(*arguments: object, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run([*map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def write_rule(folder: Path) -> None:
    """Does to a copy of the sources what the page says."""
    for name, text in BLOCKS.items():
        if name != "csrc/rules/all.h":
            (folder / name).write_text(text)
    include, entry = BLOCKS["csrc/rules/all.h"].splitlines()
    rules = folder / "csrc" / "rules" / "all.h"
    head, entries, rest = re.split(r"(#define FUSEDOPT_RULES\(X\)(?:.*\\\n)+.*)", rules.read_text(), maxsplit=1)
    rules.write_text(f"{head.rstrip()}\n{include}\n\n{entries} \\\n{entry}{rest}")


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


def test_the_rule_of_the_page_compiles_and_steps_as_a_plain_loop_does(tmp_path: Path) -> None:
    for name in ("csrc", "fusedopt"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    write_rule(tmp_path)
    build(tmp_path)
    variables = {"PYTHONPATH": str(tmp_path), "FUSEDOPT_ISA": "default"}
    printed = command(sys.executable, "try_signum.py", cwd=tmp_path, **variables)
    expected = re.findall(r"^# -> (.*)$", BLOCKS["try_signum.py"], re.MULTILINE)
    assert printed.splitlines() == expected
    assert command(sys.executable, "-c", COMPARE, cwd=tmp_path, **variables) == "agrees\n"
