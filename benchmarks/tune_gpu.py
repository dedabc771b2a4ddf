"""Try the kernels' compile-time choices on a GPU: build each with nvcc, side by side, and time one after the other.

    python benchmarks/tune_gpu.py --lines rows.jsonl

The choices are macros of csrc/cuda: threads of a block (FUSEDOPT_CUDA_THREADS), the largest chunk (FUSEDOPT_CUDA_CHUNK)
and the bytes of a small launch's arguments (FUSEDOPT_CUDA_FEW_BYTES). What is fastest is to become the default. A build
contains no torch; a JSON line says what share of the device's copy bandwidth it reaches, by case.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_steps import append

ROOT = Path(__file__).resolve().parent.parent
CHOICES: dict[str, dict[str, int]] = {
    "as it is": {},
    "256 threads": {"THREADS": 256},
    "256 threads, chunks of 8 Ki": {"THREADS": 256, "CHUNK": 8192},
    "512 threads, chunks of 8 Ki": {"CHUNK": 8192},
    "512 threads, chunks of 32 Ki": {"CHUNK": 32768},
    "128 threads": {"THREADS": 128},
    "arguments of 4 KB": {"FEW_BYTES": 4096},
}
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr"]


def command(name: str, program: Path, nvcc: str, architecture: str) -> list[str]:
    """What builds a choice."""
    macros = [f"-DFUSEDOPT_CUDA_{macro}={value}" for macro, value in CHOICES[name].items()]
    sources = [str(ROOT / "benchmarks" / "tune_gpu.cu"), str(ROOT / "csrc" / "cuda" / "launch.cu")]
    return [nvcc, *FLAGS, f"-arch={architecture}", f"-I{ROOT / 'csrc'}", *macros, *sources, "-o", str(program)]


def tuned(program: Sequence[str], name: str, seconds: float) -> dict[str, Any]:
    """The line of a choice that has been built."""
    done = subprocess.run(program, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        error = (done.stdout + done.stderr).strip().splitlines()[-1:]
        return {"kind": "failure", "what": f"tune {name}", "error": " ".join(error)[:300]}
    shares: dict[str, float] = json.loads(done.stdout)
    return {"kind": "tune", "name": name, "copy_gb_per_s": shares.pop("copy_gb_per_s"), "shares": shares}


def build(name: str, program: Path, options: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    """Build a choice."""
    return subprocess.run(
        command(name, program, options.nvcc, options.architecture), capture_output=True, text=True, check=False
    )


def lines(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each choice as soon as it has been built: all are built at once, and one runs at a time."""
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = {name: Path(folder) / str(i) for i, name in enumerate(options.choices)}
        built: dict[str, Future[subprocess.CompletedProcess[str]]] = {
            name: pool.submit(build, name, program, options) for name, program in programs.items()
        }
        for name, future in built.items():
            done = future.result()
            if done.returncode:
                yield {"kind": "failure", "what": f"tune {name}", "error": done.stderr.strip()[-300:]}
                continue
            try:
                yield tuned([str(programs[name])], name, max(1.0, end - time.monotonic()))
            except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
                yield {"kind": "failure", "what": f"tune {name}", "error": str(error)[:300]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=100, help="for all")
    parser.add_argument("--architecture", default="native", help="of nvcc: native is this machine's GPU")
    parser.add_argument("--nvcc", default="/usr/local/cuda/bin/nvcc")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu has nothing to tune")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: nothing is built")
    parser.add_argument("--lines", type=Path, required=True, metavar="FILE", help="append a JSON line per choice")
    options = parser.parse_args(arguments)
    if options.tiny:
        rehearsed = {"kind": "tune", "name": "rehearsed", "copy_gb_per_s": 1.0, "shares": {"AdamW large": 0.5}}
        append(options.lines, iter([rehearsed]))
        return
    append(options.lines, lines(options))


if __name__ == "__main__":
    main()
