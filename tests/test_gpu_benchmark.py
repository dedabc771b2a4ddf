"""`make gpu` without a GPU: its stages, its whole flow on the CPU, and its report."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import devices
import pytest
from gpu_report import markdown
from gpu_steps import COMPILED, StepRow
from gpu_training import TrainingRow
from implementations import OURS
from parameter_sets import GPU_SETS
from timing import Spread

pytestmark = pytest.mark.usefixtures("one_thread")

# tests/ has a module of this name, too.
SCRIPT = Path(devices.__file__).with_name("gpu.py")
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
    planned = driver.stages("9.0", tmp_path / "x.jsonl", sets=list(GPU_SETS), models=["lenet"], device="cuda")
    assert [s.name for s in planned][:4] == ["build", "CUDA tests", "contracts on CUDA", "numerics on CUDA"]
    assert planned[0].environment == {"TORCH_CUDA_ARCH_LIST": "9.0", "FUSEDOPT_CUDA": "1"}
    assert planned[2].environment == {"FUSEDOPT_TEST_DEVICE": "cuda"}
    assert [s.optional for s in planned if s.name.startswith("compute-sanitizer")] == [True, True]
    for s in planned:
        for argument in s.command:
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


def test_the_whole_flow(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, in processes of their own as on a GPU; a stage that fails is reported, and the rest goes on."""

    def planned(architecture: str | None, lines: Path, **_: Any) -> list[Any]:
        assert architecture is None
        few = ["--optimizers", "SGD-Nesterov", "--device", "cpu", "--lines", str(lines), "--seconds", "0"]
        steps = [sys.executable, str(SCRIPT.with_name("gpu_steps.py")), "--set", "lenet", *few]
        training = [sys.executable, str(SCRIPT.with_name("gpu_training.py")), "--model", "lenet", *few]
        return [
            driver.Stage("broken", [sys.executable, "-c", "exit(3)"], 60),
            driver.Stage("steps", steps, 60),
            driver.Stage("training", training, 60),
        ]

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(driver, "stages", planned)
    assert driver.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [line["result"] for line in results if line["kind"] == "stage"] == ["failed with status 3: ", "ok", "ok"]
    found = {(line["implementation"], line["dtype"]) for line in results if line["kind"] == "step"}
    assert found == {(i, d) for i in (OURS, "for-loop", "foreach", "fused") for d in ("float32", "bfloat16")}
    modes = {(line["implementation"], line["mode"]) for line in results if line["kind"] == "training" and line["us"]}
    # Without a graph to capture, ours refuses capturable=True on the CPU, and that is in the report.
    assert modes == {(i, "eager") for i in (OURS, "foreach", "fused")} | {("foreach", "graph"), ("fused", "graph")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.log", "gpu.md"]
    report = (tmp_path / "gpu.md").read_text()
    assert capsys.readouterr().out.endswith(report + "\n")
    assert "| broken | failed with status 3:  | 0 |" in report
    assert "- training lenet SGD-Nesterov graph, fusedopt: AssertionError: If capturable=True" in report
    assert "| SGD-Nesterov, LeNet, bfloat16 |" in report
    assert driver.main(["--device", "cpu", "--out", str(tmp_path), "--only", "nothing"]) == 1, "nothing ran"


def test_no_time_left(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--seconds", "1", "--sets", "lenet", "--models"]
    assert driver.main(arguments) == 1
    report = (tmp_path / "gpu.md").read_text()
    assert "left out: no time" in report
    assert "timed out" not in report


# ---- The report ----


def test_report() -> None:
    def row(implementation: str, us: float, **values: Any) -> dict[str, Any]:
        made = StepRow("LAMB", "bert-large", implementation, "float32", 398, 336_226_108, 14_793_948_752, 4300.0)
        made.device_us = made.wall_us = Spread(us, us, us)
        made.host_us = Spread(20.0, 19.0, 21.0)
        for name, value in values.items():
            setattr(made, name, value)
        return made.as_dict()

    ours = row(OURS, 4000.0, ratios={"foreach": Spread(2.5, 2.4, 2.6)}, work={"kernels": 4, "copies": 0, "memsets": 0})
    ours["changed_addresses"] = 398
    compiled = row(OURS, 4100.0, ratios={COMPILED: Spread(1.5, 1.5, 1.5), "foreach": Spread(9.0, 9.0, 9.0)})
    failed = StepRow("LAMB", "bert-large", "apex", "float32", 398, 1, 1, 4300.0, error="ImportError: no").as_dict()
    training = TrainingRow("lenet", "AdamW", OURS, "graph", 64, us=Spread(90.0, 80.0, 100.0)).as_dict()
    lines = [
        {"kind": "machine", "machine": {"gpu": "NVIDIA H200", "driver": "580"}},
        {"kind": "copy", "set": "bert-large", "gb_per_s": 4300.0},
        {"kind": "stage", "name": "build", "result": "ok", "seconds": 61.4, "ok": True},
        {"kind": "failure", "what": "AdamW giant", "error": "needs 99 GiB"},
        *(ours, row("foreach", 10_000.0), failed, compiled, row(COMPILED, 6150.0), training),
    ]
    report = markdown(lines).splitlines()
    assert report[0].startswith("gpu NVIDIA H200, driver 580; device-to-device copy 4,300 to 4,300 GB/s")
    assert "| build | ok | 61 |" in report
    assert "- AdamW giant: needs 99 GiB" in report
    assert "- LAMB, BERT-large, float32, apex: ImportError: no" in report
    at = report.index(
        "| LAMB, BERT-large, float32 | 4,000.0 | 3,698 | 86% | 4, 0, 0 | 2.50x (2.40 .. 2.60) | 1.50x (1.50 .. 1.50) |"
    )
    assert report[at - 2].endswith("| vs foreach | vs compiled foreach |")
    assert "| 398 of 398 |" in report[-5]
    assert report[-1] == "| lenet AdamW graph | 90.0 |"


def test_report_of_nothing() -> None:
    assert markdown([]) == ".\n"
