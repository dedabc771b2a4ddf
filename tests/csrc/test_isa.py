"""Each instruction set of this machine, in a process of its own: it is chosen once, when the library is first used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_torch
NEEDS = {
    "default": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512dq", "avx512bw"},
}


def machine_has(isa: str) -> bool:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return NEEDS[isa] <= set(flags.split())


HERE = [isa for isa in NEEDS if machine_has(isa)]
by_isa = pytest.mark.parametrize(
    "isa", [pytest.param(isa, marks=pytest.mark.skipif(isa not in HERE, reason=f"no {isa} here")) for isa in NEEDS]
)


def run(*args: str, **variables: str) -> str:
    dropped = ("FUSEDOPT_", "ATEN_", "PYTEST_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)} | variables
    done = subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


def used(**variables: str) -> str:
    return run("-c", "import fusedopt; print(fusedopt.info()['instruction set'])", **variables)


@by_isa
def test_numerics(isa: str) -> None:
    """What is marked for it: the yardstick, and the conversion of every half-precision number and of all storages."""
    if isa == used():
        return  # the tests themselves have run with it
    tests = [str(path) for path in Path(__file__).parents[1].rglob("test_*.py") if "mark.each_isa" in path.read_text()]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    output = run("-m", "pytest", *options, *tests, "-m", "each_isa", FUSEDOPT_ISA=isa)
    assert int(re.search(r"(\d+) passed", output)[1]) > 300  # type: ignore[index]


def test_the_best_one_is_the_default() -> None:
    assert used() == HERE[-1]


@by_isa
def test_torchs_variable_is_honoured(isa: str) -> None:
    assert used(ATEN_CPU_CAPABILITY=isa) == isa


def test_our_variable_goes_before_torchs() -> None:
    assert used(FUSEDOPT_ISA="default", ATEN_CPU_CAPABILITY=HERE[-1]) == "default"


@pytest.mark.parametrize("variable", ["FUSEDOPT_ISA", "ATEN_CPU_CAPABILITY"])
def test_an_unknown_name_gives_one_that_the_machine_has(variable: str) -> None:
    step = """
import torch, fusedopt
p = torch.ones(40, dtype=torch.float16)
p.grad = torch.ones_like(p)
fusedopt.SGD([p], lr=0.5).step()
assert (p == 0.5).all()
print(fusedopt.info()["instruction set"])
"""
    assert run("-c", step, **{variable: "avx10_9"}) in HERE
