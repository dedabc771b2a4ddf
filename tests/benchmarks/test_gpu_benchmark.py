"""`make gpu` without a GPU: its stages, its whole flow on the CPU, and its report."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import gpu_stages
import pytest

from fusedopt import _C
from fusedopt.benchmark.implementations import OURS
from fusedopt.benchmark.parameter_sets import GPU_SETS

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]

# tests/ has a module of this name, too.
SCRIPT = Path(gpu_stages.__file__).with_name("gpu.py")
_spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
driver = importlib.util.module_from_spec(_spec)
sys.modules["gpu_benchmark"] = driver  # where dataclasses look their annotations up
_spec.loader.exec_module(driver)


# ---- Stages ----


def stage(code: str, **options: Any) -> Any:
    return driver.Stage("a stage", [sys.executable, "-c", code], 60, **options)


@pytest.mark.parametrize(
    ("code", "optional", "result", "ok"),
    [
        ("print('3 passed in 0.12s')", False, "ok: 3 passed in 0.12s", True),
        (
            "print('1 failed, 3 passed in 0.12s'); exit(1)",
            False,
            "failed with status 1: 1 failed, 3 passed in 0.12s",
            False,
        ),
        ("raise KeyError('x')", False, "failed with status 1: KeyError: 'x'", False),
        ("raise KeyError('x')", True, "failed with status 1: KeyError: 'x'", True),
        ("print('Error: Device not supported'); exit(3)", True, "refused: Device not supported", True),
        ("import os; os.abort()", False, "failed with status -6: ", False),
    ],
)
def test_how_a_stage_ends(tmp_path: Path, code: str, optional: bool, result: str, ok: bool) -> None:
    outcome = driver.run_stage(stage(code, optional=optional), tmp_path / "log", 60)
    assert outcome.result.startswith(result)
    assert outcome.ok is ok
    assert "==== a stage: " in (tmp_path / "log").read_text()


def test_a_stage_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 600 & echo $! > {pid}; wait"]
    outcome = driver.run_stage(driver.Stage("hangs", command, 60), tmp_path / "log", 2)
    assert outcome.result.startswith("timed out after")
    assert not outcome.ok
    child = Path("/proc", pid.read_text().strip(), "stat")
    for _ in range(200):  # killed, it may take a moment to be gone
        if not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] in "ZX":
            return
        time.sleep(0.05)
    pytest.fail("its child runs on")


def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    outcome = driver.run_stage(driver.Stage("x", ["/no/such/program"], 60, optional=True), tmp_path / "log", 60)
    assert outcome.result == "refused: No such file or directory: /no/such/program"
    assert outcome.ok


def test_the_stages_of_a_gpu(tmp_path: Path) -> None:
    planned = gpu_stages.stages("9.0", tmp_path / "x.jsonl", sets=list(GPU_SETS), models=["lenet"], device="cuda")
    names = [s.name for s in planned]
    assert names[:5] == ["build", "tune", "steps giant", "steps gpt2-xl", "steps bert-large"]
    assert names.index("training lenet") < names.index("CUDA tests") < names.index("halves resnet50")
    assert names[-2:] == ["compute-sanitizer memcheck", "compute-sanitizer racecheck"]
    by_name = dict(zip(names, planned, strict=True))
    assert by_name["build"].environment == {"TORCH_CUDA_ARCH_LIST": "9.0", "FUSEDOPT_CUDA": "1"}
    assert by_name["contracts on CUDA"].environment == {"FUSEDOPT_TEST_DEVICE": "cuda"}
    assert [s.name for s in planned if s.optional] == [
        "tune",
        "compiled on CUDA",
        "compiled resnet50",
        "compiled lenet",
        *names[-2:],
    ]
    for s in planned:
        assert 0 < s.expected < s.seconds
        for argument in (*s.command, *s.stand_in):
            if argument.endswith(".py"):
                assert (driver.ROOT / argument).exists(), argument


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    assert driver.read(lines) == []
    lines.write_text('{"kind": "copy"}\n{"kind": "st\n{"kind": "stage"}\n')
    assert driver.read(lines) == [{"kind": "copy"}, {"kind": "stage"}]


def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    assert done.returncode == 1
    assert "make gpu needs an NVIDIA GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def read_json(folder: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads((folder / "gpu.json").read_text())
    return results


def results(folder: Path) -> dict[str, str]:
    return {line["name"]: line["result"] for line in read_json(folder) if line["kind"] == "stage"}


@pytest.mark.skipif(_C.GPU is None, reason="make gpu is for builds with CUDA kernels")
def test_a_rehearsal_of_the_whole_schedule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of stage's stand-in runs as it would on a GPU, in a process of its own; tests are collected."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sets, models = ["giant", "gpt2-xl", "bert-large", "lenet"], ["lenet"]
    chosen = ["--sets", *sets, "--models", *models]
    assert driver.main(["--rehearse", "--minutes", "60", "--out", str(tmp_path), *chosen]) == 0
    planned = gpu_stages.stages("9.0", tmp_path, sets=sets, models=models, device="cuda")
    assert results(tmp_path) == {s.name: "ok" for s in planned}
    lines = read_json(tmp_path)
    assert not [line for line in lines if line["kind"] == "failure"]
    found = {
        (s["implementation"], s["format"]) for s in lines if s["kind"] == "step" and s["parameter_set"] == "gpt2-xl"
    }
    assert found >= {*product((OURS, "foreach", "fused"), ("plain", "masters", "8bit", "stochastic"))}
    assert {line["mode"] for line in lines if line["kind"] == "training" and line["us"]} == {"graph", "eager", "course"}
    report = (tmp_path / "gpu.md").read_text()
    assert capsys.readouterr().out.endswith(report + "\n")
    verdicts = [row.rsplit(" | ", 1)[1] for row in report.splitlines() if "of the copy's bandwidth | at least" in row]
    assert len(verdicts) == 11
    assert set(verdicts) <= {"met |", "missed |"}, "a goal's row was not run"
    log = (tmp_path / "gpu.log").read_text(errors="replace")
    assert "tests/csrc/test_real_gpu.py" in log
    assert len(re.findall(r"\d+(?:/\d+)? tests collected", log)) == 6


class Schedule:
    """Stages that do what they are told, in the place of those of a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **stages: tuple[str, float]) -> None:
        planned = [
            driver.Stage(name, command := [sys.executable, "-c", code], 100, expected, stand_in=command)
            for name, (code, expected) in stages.items()
        ]
        monkeypatch.setattr(driver, "stages", lambda *_, **__: planned)


WRITES = """
import json, os
open(os.environ["FUSEDOPT_LINES"], "a").write(json.dumps({"kind": "copy", "set": "a", "gb_per_s": %d}) + "\\n")
"""


def test_what_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four minutes, with a clock that runs fast: the third is cut short, and for the fourth there is no time."""
    Schedule(monkeypatch, first=("", 90), slow=("", 130), third=("", 60), fourth=("", 10))
    assert driver.main(["--rehearse", "--minutes", "4", "--out", str(tmp_path)]) == 1
    assert results(tmp_path) == {
        "first": "ok",
        "slow": "timed out after 100 s",
        "third": "timed out after 40 s",
        "fourth": "left out: no time",
    }
    assert driver.main(["--rehearse", "0.5", "--minutes", "4", "--out", str(tmp_path)]) == 0
    assert set(results(tmp_path).values()) == {"ok"}


def test_a_second_run_adds_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = WRITES % 3 + "open(os.environ['FUSEDOPT_LINES'], 'a').write(json.dumps({'kind': 'failure', 'what': 'x',"
    fails += " 'error': 'y', 'stage': os.environ['FUSEDOPT_STAGE']}) + chr(10)); exit(3)"
    Schedule(monkeypatch, one=(fails, 1), two=("", 1))
    assert driver.main(["--rehearse", "--out", str(tmp_path)]) == 1
    assert [line["gb_per_s"] for line in read_json(tmp_path) if line["kind"] == "copy"] == [3]
    assert "- x: y" in (tmp_path / "gpu.md").read_text()
    Schedule(monkeypatch, one=(WRITES % 7, 1))
    assert driver.main(["--rehearse", "--only", "one", "--out", str(tmp_path)]) == 0
    assert results(tmp_path) == {"one": "ok", "two": "ok"}
    assert [line["gb_per_s"] for line in read_json(tmp_path) if line["kind"] == "copy"] == [7]
    assert "- x: y" not in (tmp_path / "gpu.md").read_text(), "the stage has passed since"
    assert driver.main(["--rehearse", "--only", "nothing", "--out", str(tmp_path)]) == 1, "nothing ran"


def test_a_run_that_is_killed_leaves_all_that_was_finished(tmp_path: Path) -> None:
    stands_still = WRITES % 5 + "import time\nparent = os.getppid()\nwhile os.getppid() == parent: time.sleep(0.1)"
    code = f"""
import importlib.util, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu as driver
stage = lambda name, code: driver.Stage(name, [sys.executable, "-c", code], 500)
driver.stages = lambda *_, **__: [stage("done", ""), stage("killed", {stands_still!r})]
driver.main(["--device", "cpu", "--out", {str(tmp_path)!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=SCRIPT.parent)
    try:
        for _ in range(1200):
            if (tmp_path / "gpu.json").exists() and '"gb_per_s": 5' in (tmp_path / "gpu.json").read_text():
                break  # the report is made while a stage is still running
            time.sleep(0.1)
        else:
            pytest.fail("a running stage's results are not in gpu.json")
    finally:
        process.kill()
        process.wait()
    assert results(tmp_path) == {"done": "ok"}
    assert [line["gb_per_s"] for line in read_json(tmp_path) if line["kind"] == "copy"] == [5]


def test_a_failing_test_is_told_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("def test_a():\n    assert 1 == 2, 'no'\n\ndef test_b():\n    exit(9)\n")
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "FUSEDOPT_LINES": str(tmp_path / "lines")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "report_failures", "-p", "no:cacheprovider", "test_x.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "FAILED test_x.py::test_a: AssertionError: no" in done.stdout
    lines = driver.read(tmp_path / "lines")
    assert lines[0]["what"] == "test_x.py::test_a"


def test_a_log_with_any_bytes(tmp_path: Path) -> None:
    outcome = driver.run_stage(stage("import os; os.write(1, bytes([255, 254])); exit(1)"), tmp_path / "log", 60)
    assert outcome.result.startswith("failed with status 1")


def test_wheels_carried_along_stay_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    driver.run_stage(stage("import os; print('it is', os.environ['PYTHONPATH'])"), tmp_path / "log", 60)
    assert (
        f"it is {driver.ROOT}{os.pathsep}{driver.BENCHMARKS}{os.pathsep}/somewhere/else"
        in (tmp_path / "log").read_text()
    )


def test_an_old_setuptools_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "version", lambda _: "70.3.0")
    with pytest.raises(SystemExit, match=r"needs setuptools 77 or later, and here is 70\.3\.0"):
        driver.main(["--rehearse", "--out", str(tmp_path)])
