"""Everything that only a GPU can show, in one command: build, benchmark, CUDA tests, compute-sanitizer, report.

    make gpu                      # at most nine minutes; needs torch, nvcc and a GPU, no network
    make gpu MINUTES=12 OUT=somewhere PYTHON=python3.12

Each stage is a process of its own with a time limit, the goals' first. What fails or takes too long is reported at
once, and the run goes on. In OUT, whenever the run ends or is ended: gpu.jsonl has a line for each result, written as
it came; every other second gpu.json (the newest of each result) and gpu.md (goals and tables, which are printed last)
are made of it; gpu.log has what the stages print. Another run in the same folder adds to it, and replaces what it
measures again:
python benchmarks/gpu.py --only 'steps gpt2-xl|training'. The exit status is not 0 if a stage failed.

A rehearsal (``--rehearse``) runs the whole schedule without a GPU: each stage's stand-in, and then its expected time
passes at once.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import unbuilt  # noqa: F401  # isort: skip
import torch
from gpu_report import markdown
from gpu_stages import BENCHMARKS, Stage, stages
from gpu_steps import COMPILED

from fusedopt.benchmark.devices import DEVICES, Device
from fusedopt.benchmark.parameter_sets import GPU_SETS

ROOT = BENCHMARKS.parent
REFUSED = re.compile(r"device not supported|unable to find.*sanitizer|sanitizer: not found|error 999", re.IGNORECASE)
RESERVE = 10  # seconds for what is done between and after the stages
LEAST = 5  # seconds with which a stage is still begun
SETUPTOOLS = 77


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


class Clock:
    """Seconds since the run began."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        """By the machine."""
        return time.perf_counter() - self._start

    def patience(self, limit: float) -> float:
        """How long to wait for a stage with that limit."""
        return limit

    def passed(self, stage: Stage, seconds: float, limit: float) -> tuple[float, bool]:
        """How long a stage took that took so many seconds, and whether that was within its limit."""
        return seconds, True


class RehearsalClock(Clock):
    """A clock that runs fast: it stands still, and goes on by what each stage is expected to take."""

    def __init__(self, slower: float) -> None:
        self._now, self._slower = 0.0, slower

    def now(self) -> float:
        """By what has been expected so far."""
        return self._now

    def patience(self, limit: float) -> float:
        """A busy machine decides nothing."""
        return 1000

    def passed(self, stage: Stage, seconds: float, limit: float) -> tuple[float, bool]:
        """The expected time, or as much of it as the limit allows."""
        expected = stage.expected * self._slower
        self._now += min(expected, limit)
        return min(expected, limit), expected <= limit


def run_stage(
    stage: Stage,
    log: Path,
    seconds: float,
    *,
    lines: Path | None = None,
    clock: Clock | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run a stage for at most so many seconds, with its output in the log; ``tick`` is called every other second."""
    path = os.pathsep.join([str(ROOT), str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])])
    clock = clock or Clock()
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | stage.environment
    if lines is not None:
        environment |= {"FUSEDOPT_LINES": str(lines), "FUSEDOPT_STAGE": stage.name}
    start = time.perf_counter()
    with log.open("a+", errors="replace") as file:
        file.write(f"\n==== {stage.name}: {' '.join(stage.command)}\n")
        file.flush()
        begin = file.tell()
        try:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            return Outcome(stage.name, f"refused: {error.strerror}: {stage.command[0]}", 0.0, stage.optional)
        status = _wait(process, clock.patience(seconds), tick)
        file.seek(begin)
        text = file.read()
    taken, in_time = clock.passed(stage, time.perf_counter() - start, seconds)
    if status is None or not in_time:
        return Outcome(stage.name, f"timed out after {taken:.0f} s", taken, stage.optional)
    return Outcome(stage.name, verdict(text, status), taken, status == 0 or stage.optional)


def _wait(process: "subprocess.Popen[bytes]", seconds: float, tick: Callable[[], object]) -> int | None:
    """The status of a process, None where it had to be ended."""
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        try:
            return process.wait(min(left, 2))
        except subprocess.TimeoutExpired:
            tick()
    os.killpg(process.pid, signal.SIGKILL)  # with the workers that it started
    process.wait()
    return None


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


def merged(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest of each result, in the order of their first: of the lines that say the same but for their values."""
    of_a_step = ("optimizer", "parameter_set", "dtype", "format", "implementation")
    names = ("kind", "name", "what", "set", "model", "mode", *of_a_step)
    newest: dict[Any, dict[str, Any]] = {}
    for line in results:
        compiled = COMPILED in line.get("ratios", {}) or line.get("implementation") == COMPILED
        newest[(*(line.get(name) for name in names), compiled)] = line
    passed = {line["name"] for line in newest.values() if line["kind"] == "stage" and line["ok"]}
    return [line for line in newest.values() if line["kind"] != "failure" or line.get("stage") not in passed]


def write_report(out: Path, lines: Path) -> str:
    """Write gpu.json and gpu.md, each at once, and return the latter."""
    results = merged(read(lines))
    report = markdown(results)
    for name, text in (("gpu.json", json.dumps(results, indent=1) + "\n"), ("gpu.md", report)):
        part = out / f"{name}.part"
        part.write_text(text)
        part.replace(out / name)
    return report


def require(device: str) -> Device:
    """The device, or an error that says what is missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"make gpu needs an NVIDIA GPU, and torch {torch.__version__} (CUDA {torch.version.cuda}) sees none here.\n"
            "To try the benchmark out on the CPU: python benchmarks/gpu.py --device cpu --sets lenet --models lenet"
        )
    return DEVICES[device]()


def check_setuptools() -> None:
    """Fail before anything else does, where the build would."""
    found = version("setuptools")
    if int(found.partition(".")[0]) < SETUPTOOLS:
        raise SystemExit(
            f"the build needs setuptools {SETUPTOOLS} or later, and here is {found}; carry a wheel of it along"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9, help="for the whole run; 12 for a loan of 15")
    parser.add_argument("--sets", nargs="*", choices=GPU_SETS, default=list(GPU_SETS), metavar="SET")
    parser.add_argument("--models", nargs="*", default=["lenet", "resnet9"], metavar="MODEL")
    parser.add_argument("--only", metavar="PATTERN", help="stages whose name matches this regular expression")
    parser.add_argument("--device", choices=DEVICES, default="cuda", help="cpu tries the benchmark out")
    parser.add_argument(
        "--rehearse", type=float, nargs="?", const=1.0, metavar="SLOWER", help="how many times slower than expected"
    )
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace, lines: Path) -> list[Stage]:
    """The stages that were asked for."""
    architecture = None
    if options.rehearse:
        architecture = "9.0"
    elif options.device == "cuda":
        architecture = ".".join(map(str, torch.cuda.get_device_capability()))
    planned = stages(architecture, lines, sets=options.sets, models=options.models, device=options.device)
    return [stage for stage in planned if not options.only or re.search(options.only, stage.name)]


def run(options: argparse.Namespace, planned: Sequence[Stage], out: Path, lines: Path, clock: Clock) -> list[Outcome]:
    """Run the stages for as long as there is time; each outcome is on disk when the next begins."""
    log, outcomes = out / "gpu.log", []
    for stage in planned:
        left = options.minutes * 60 - RESERVE - clock.now()
        if left < LEAST:
            outcome = Outcome(stage.name, "left out: no time", 0.0, stage.optional)
        else:
            stage = stage.rehearsed() if options.rehearse else stage
            before = len(read(lines))
            outcome = run_stage(
                stage,
                log,
                min(stage.seconds, left),
                lines=lines,
                clock=clock,
                tick=lambda: write_report(out, lines),
            )
            failures = [line for line in read(lines)[before:] if line["kind"] == "failure"]
            print("".join(f"  {line['what']}: {line['error']}\n" for line in failures), end="")
        print(f"{outcome.name}: {outcome.result} ({outcome.seconds:.0f} s)", flush=True)
        outcomes.append(outcome)
        record(lines, outcome.as_dict())
        write_report(out, lines)
        if stage.name == "build" and not outcome.ok:
            print(log.read_text(errors="replace")[-6000:], flush=True)
            break  # nothing of it would be of this source
    return outcomes


def record(lines: Path, line: dict[str, Any]) -> None:
    """Add a line to the results. The one before may have been cut off in its middle."""
    with lines.open("a") as file:
        file.write("\n" + json.dumps(line) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages; the exit status."""
    options = parse(arguments)
    clock = Clock() if options.rehearse is None else RehearsalClock(options.rehearse)
    check_setuptools()
    machine = require("cpu" if options.rehearse else options.device).describe()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lines = out / "gpu.jsonl"
    record(lines, {"kind": "machine", "machine": machine})
    outcomes = run(options, plan(options, lines), out, lines, clock)
    print("\n" + write_report(out, lines))
    return 0 if outcomes and all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
