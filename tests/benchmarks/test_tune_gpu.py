"""`benchmarks/tune_gpu.py` without a GPU: what it builds, and what becomes of choices that do not build or run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import tune_gpu

pytestmark = pytest.mark.one_torch


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    """A compiler whose programs print what they were built with; it refuses blocks of 128 threads."""
    program = tmp_path / "nvcc"
    program.write_text(
        f"""#!{sys.executable}
import json, os, sys
if "-DFUSEDOPT_CUDA_THREADS=128" in sys.argv:
    sys.exit("error: too few")
out = sys.argv[sys.argv.index("-o") + 1]
failing = "-DFUSEDOPT_CUDA_CHUNK=32768" in sys.argv
with open(out, "w") as file:
    file.write("#!/bin/sh\\n" + ("echo 'an illegal access'; exit 1" if failing else
        "echo '" + json.dumps({{"copy_gb_per_s": 4000.0, "AdamW large": 0.5 + 0.1 * (len(sys.argv) % 3)}}) + "'"))
os.chmod(out, 0o755)
"""
    )
    program.chmod(0o755)
    return program


def test_every_choice_is_tried(nvcc: Path, tmp_path: Path) -> None:
    tune_gpu.main(["--lines", str(tmp_path / "lines"), "--nvcc", str(nvcc), "--architecture", "sm_90"])
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    named = {line.get("name") or line["what"].removeprefix("tune "): line for line in lines}
    assert list(named) == list(tune_gpu.CHOICES)
    assert named["128 threads"]["error"] == "error: too few"
    assert named["512 threads, chunks of 32 Ki"]["error"] == "an illegal access"
    assert named["as it is"]["copy_gb_per_s"] == 4000.0
    assert list(named["as it is"]["shares"]) == ["AdamW large"]


def test_what_is_built() -> None:
    command = tune_gpu.command("256 threads, chunks of 8 Ki", Path("x"), "nvcc", "sm_90")
    assert {"-DFUSEDOPT_CUDA_THREADS=256", "-DFUSEDOPT_CUDA_CHUNK=8192", "-arch=sm_90"} <= set(command)
    assert all(Path(argument).exists() for argument in command if argument.endswith(".cu"))
    macros = {macro for choice in tune_gpu.CHOICES.values() for macro in choice}
    sources = "".join(path.read_text() for path in (tune_gpu.ROOT / "csrc" / "cuda").iterdir())
    assert all(f"#ifndef FUSEDOPT_CUDA_{macro}\n" in sources for macro in macros), "a choice that nothing reads"


def test_a_program_that_hangs_costs_its_own_time_alone(tmp_path: Path) -> None:
    hangs = tmp_path / "nvcc"
    hangs.write_text(
        f"#!{sys.executable}\nimport os, sys\nout = sys.argv[-1]\n"
        "open(out, 'w').write('#!/bin/sh\\nexec sleep 600')\nos.chmod(out, 0o755)\n"
    )
    hangs.chmod(0o755)
    options = argparse.Namespace(choices=["as it is", "128 threads"], seconds=0, nvcc=str(hangs), architecture="sm_90")
    assert [line["kind"] for line in tune_gpu.lines(options)] == ["failure", "failure"]
