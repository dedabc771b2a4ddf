"""The CUDA kernels' own source, run on the CPU under sanitizers: quiet as it is, and bugs planted in it are caught."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_torch

SOURCES = Path(__file__).parents[1] / "cuda_on_cpu"
CSRC = Path(__file__).parents[2] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-Wno-unknown-pragmas", "-ffp-contract=off"]
DEFINES = ["-DFUSEDOPT_CUDA_ON_CPU", "-DFUSEDOPT_CUDA_THREADS=64"]
BUILDS = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}
WRONG = r"kernels\.cu:\d+: wrong"
RACE = "ThreadSanitizer: data race"

Build = Callable[..., Path]

# What is planted: the right text in one of the files below and the wrong one; the build that catches it, and how.
PLANTED = {
    "store out of bounds": (
        "whole, chunk.count, body, after)",
        "whole, chunk.count + 1, body, after)",
        "asan",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "misaligned vector": ("if (address % 16 == 0)", "if (true)", "asan", "misaligned address"),
    "missing barrier before the rule is read": (
        "__syncthreads();\n  return *reinterpret_cast<const Rule*>(folded);",
        "return *reinterpret_cast<const Rule*>(folded);",
        "tsan",
        RACE,
    ),
    "missing barrier in a sum": (
        "__syncthreads();\n  if (threadIdx.x) return;",
        "if (threadIdx.x) return;",
        "tsan",
        RACE,
    ),
    "missing fence before the last block is known": (
        "__threadfence();\n    last[0] =",
        "last[0] =",
        "tsan",
        RACE,
    ),
    "steps counted before all blocks have read them": ("== gridDim.x - 1", "== 0", "tsan", RACE),
    "not rescaled": ("double(factor) * gradient_scale(args.scaling)", "double(factor)", "plain", WRONG),
    "unclipped": ("if (!s.square_sum) return scale;", "return scale;", "plain", WRONG),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Makes a program of these kernels in one of the builds; the executor is compiled once for each of them."""
    shared = tmp_path_factory.mktemp("executor")

    def compiled(name: str, csrc: Path, source: str, folder: Path, *more: str) -> Path:
        target = folder / f"{source}-{name}.o"
        if not target.exists():
            command = ["g++", *FLAGS, *DEFINES, *more, *BUILDS[name], "-I", csrc, "-I", SOURCES]
            subprocess.run([*command, "-x", "c++", "-c", SOURCES / source, "-o", target], check=True)
        return target

    def build(name: str, csrc: Path, folder: Path, *more: str) -> Path:
        program = folder / name
        objects = [compiled(name, CSRC, source, shared) for source in ("executor.cpp", "streams.cpp")]
        objects.append(compiled(name, csrc, "kernels.cu", folder, *more))
        subprocess.run(["g++", *BUILDS[name], *objects, "-o", program, "-pthread"], check=True)
        return program

    return build


def run(program: Path, order: str) -> subprocess.CompletedProcess[str]:
    settings = {"FUSEDOPT_EXECUTOR_ORDER": order, "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0", "LD_PRELOAD": ""}
    done = subprocess.run([program], env=os.environ | settings, capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("g++'s ThreadSanitizer does not run on this kernel: vm.mmap_rnd_bits is above 28")
    return done


@pytest.mark.parametrize("name", BUILDS)
def test_quiet(name: str, build: Build, tmp_path: Path) -> None:
    program = build(name, CSRC, tmp_path)
    for order in ("forward", "reverse", "1", "2"):
        done = run(program, order)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("planted", PLANTED)
def test_caught(planted: str, build: Build, tmp_path: Path) -> None:
    right, wrong, name, message = PLANTED[planted]
    shutil.copytree(CSRC, tmp_path / "csrc")
    sources = [tmp_path / "csrc" / "cuda" / file for file in ("kernels.cuh", "sweep.cuh", "codecs.cuh")]
    assert sum(source.read_text().count(right) for source in sources) == 1
    for source in sources:
        source.write_text(source.read_text().replace(right, wrong))
    program = build(name, tmp_path / "csrc", tmp_path, "-DFUSEDOPT_FLOAT_ALONE")
    for order in ("forward", "reverse", "1", "2"):
        done = run(program, order)
        assert done.returncode != 0
        assert re.search(message, done.stdout + done.stderr), done.stdout + done.stderr
