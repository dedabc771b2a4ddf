"""Everything that only a GPU can show, in one command: build, CUDA tests, compute-sanitizer, benchmark, report.

    make gpu                      # at most nine minutes; needs torch, nvcc and a GPU, no network
    make gpu OUT=somewhere PYTHON=python3.12

Each stage is a process of its own with a time limit. What fails or takes too long is reported, and the run goes on. In
OUT, after each stage: gpu.json (all results), gpu.md (the report, which is printed last) and gpu.log (what the stages
print); during a stage gpu.jsonl has a line for each result as it comes. The exit status is not 0 if a stage failed. To
run some stages again, where it is built: python benchmarks/gpu.py --only 'steps gpt2-xl|training'.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from devices import DEVICES, Device
from gpu_report import markdown
from parameter_sets import GPU_SETS

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
CONTRACTS = ("contract", "amp", "clipping", "lamb", "state_dict", "fallback", "refusals", "plan", "regressions")
NUMERICS = "test_yardstick and fast or test_every_half or test_states_at_odd_offsets"  # of tests/test_numerics.py
WITHOUT_GRAPHS = "(test_overflows or test_lr_on_the_device) and not True"  # of tests/test_gpu.py
REFUSED = re.compile(r"device not supported|unable to find.*sanitizer|sanitizer: not found|error 999", re.IGNORECASE)


@dataclass(frozen=True)
class Stage:
    """A command with the most seconds that it may take. Where ``optional``, its failure does not fail the run."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: ``result`` is ok, failed, timed out or refused, with what its output says of it."""

    name: str
    result: str
    seconds: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"kind": "stage", "name": self.name, "result": self.result, "seconds": self.seconds, "ok": self.ok}


def stages(
    architecture: str | None, lines: Path, *, sets: Sequence[str], models: Sequence[str], device: str
) -> list[Stage]:
    """All stages, in order. Without an ``architecture`` (a compute capability such as 9.0) only the benchmark."""
    python = sys.executable

    def worker(script: str, *arguments: str) -> list[str]:
        return [python, str(BENCHMARKS / script), *arguments, "--device", device, "--lines", str(lines)]

    benchmark = [Stage(f"training {name}", worker("gpu_training.py", "--model", name), 45) for name in models]
    benchmark += [Stage(f"steps {name}", worker("gpu_steps.py", "--set", name), 70) for name in sets]
    small = [name for name in ("lenet", "resnet50") if name in sets]
    compiled = ["--compiled", "--optimizers", "AdamW", "--dtypes", "float32"]
    benchmark += [
        Stage(f"compiled {name}", worker("gpu_steps.py", "--set", name, *compiled), 60, optional=True) for name in small
    ]
    if architecture is None:
        return benchmark

    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    # Warnings of another torch than the one that CI has are no errors here.
    pytest = [python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    contracts = [f"tests/test_{name}.py" for name in CONTRACTS]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    on_cuda = {"FUSEDOPT_TEST_DEVICE": "cuda"}

    def checked(tool: str) -> Stage:
        command = [
            sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            *pytest,
            "tests/test_gpu.py",
            "-k",
            WITHOUT_GRAPHS,
        ]
        every_access = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # or an overrun would end in a neighbour's memory
        return Stage(f"compute-sanitizer {tool}", command, 70, every_access, optional=True)

    return [
        Stage(
            "build",
            [python, "setup.py", "-q", "egg_info", "build_ext", "--inplace"],
            210,
            {"TORCH_CUDA_ARCH_LIST": architecture, "FUSEDOPT_CUDA": "1"},
        ),
        Stage("CUDA tests", [*pytest, *workers, "tests/test_gpu.py", "tests/test_real_gpu.py"], 100),
        Stage("contracts on CUDA", [*pytest, *workers, *contracts], 100, on_cuda),
        Stage("numerics on CUDA", [*pytest, *workers, "tests/test_numerics.py", "-k", NUMERICS], 80, on_cuda),
        checked("memcheck"),
        *benchmark,
        checked("racecheck"),
    ]


def run_stage(stage: Stage, log: Path, seconds: float) -> Outcome:
    """Run a stage for at most so many seconds, with its output in the log."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | stage.environment
    start = time.perf_counter()
    with log.open("a+") as file:
        file.write(f"\n==== {stage.name}: {' '.join(stage.command)}\n")
        file.flush()
        begin = file.tell()
        try:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            return Outcome(stage.name, f"refused: {error.strerror}: {stage.command[0]}", 0.0, stage.optional)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that it started
            process.wait()
            status = None
        file.seek(begin)
        text = file.read()
    taken = time.perf_counter() - start
    if status is None:
        return Outcome(stage.name, f"timed out after {taken:.0f} s", taken, stage.optional)
    return Outcome(stage.name, verdict(text, status), taken, status == 0 or stage.optional)


def verdict(output: str, status: int) -> str:
    """What the output of a stage that ended by itself says of it."""
    tests = re.findall(r"^=* ?(\d+ (?:passed|failed|skipped|error|deselected).* in [\d.]+s)", output, re.MULTILINE)
    errors = re.findall(r"ERROR SUMMARY: (\d+ errors?)", output) or re.findall(r"RACECHECK SUMMARY: (.+)", output)
    says = "; ".join([*tests[-1:], *errors[-1:]])
    if status == 0:
        return "ok" + (f": {says}" if says else "")
    if refused := REFUSED.search(output):
        return f"refused: {refused.group()}"
    if not says:
        says = next((line.strip()[:200] for line in reversed(output.splitlines()) if line.strip()), "")
    return f"failed with status {status}: {says}"


def read(lines: Path) -> list[dict[str, Any]]:
    """What has been written so far. A line that a stage was killed in the middle of is left out."""
    results = []
    for line in lines.read_text().splitlines() if lines.exists() else []:
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results


def write_report(out: Path, lines: Path) -> str:
    """Write gpu.json and gpu.md, and return the latter."""
    results = read(lines)
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    report = markdown(results)
    (out / "gpu.md").write_text(report)
    return report


def require(device: str) -> Device:
    """The device, or an error that says what is missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"make gpu needs an NVIDIA GPU, and torch {torch.__version__} (CUDA {torch.version.cuda}) sees none here.\n"
            "To try the benchmark out on the CPU: python benchmarks/gpu.py --device cpu --sets lenet --models lenet"
        )
    return DEVICES[device]()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument("--seconds", type=float, default=530, help="for the whole run")
    parser.add_argument("--sets", nargs="*", choices=GPU_SETS, default=list(GPU_SETS), metavar="SET")
    parser.add_argument("--models", nargs="*", default=["lenet", "resnet50"], metavar="MODEL")
    parser.add_argument("--only", metavar="PATTERN", help="stages whose name matches this regular expression")
    parser.add_argument("--device", choices=DEVICES, default="cuda", help="cpu tries the benchmark out")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    machine = require(options.device).describe()
    architecture = None
    if options.device == "cuda":
        architecture = ".".join(map(str, torch.cuda.get_device_capability()))
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lines, log = out / "gpu.jsonl", out / "gpu.log"
    for path in (lines, log, out / "gpu.json", out / "gpu.md"):
        path.unlink(missing_ok=True)

    def record(line: dict[str, Any]) -> None:
        with lines.open("a") as file:
            file.write("\n" + json.dumps(line) + "\n")  # the stage before may have been ended within a line

    record({"kind": "machine", "machine": machine})
    planned = stages(architecture, lines, sets=options.sets, models=options.models, device=options.device)
    outcomes = []
    for stage in planned:
        if options.only and not re.search(options.only, stage.name):
            continue
        left = options.seconds - (time.perf_counter() - start)
        if left < 5:
            outcome = Outcome(stage.name, "left out: no time", 0.0, stage.optional)
        else:
            outcome = run_stage(stage, log, min(stage.seconds, left))
        print(f"{outcome.name}: {outcome.result} ({outcome.seconds:.0f} s)", flush=True)
        outcomes.append(outcome)
        record(outcome.as_dict())
        write_report(out, lines)
        if stage.name == "build" and not outcome.ok:
            print(log.read_text()[-6000:], flush=True)
            break  # nothing of it would be of this source
    print("\n" + write_report(out, lines))
    lines.unlink()
    return 0 if outcomes and all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
