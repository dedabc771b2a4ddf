"""What `make gpu` reports, and how it judges the goals."""

from __future__ import annotations

from typing import Any

import pytest
from goals import goals
from gpu_report import markdown
from gpu_steps import COMPILED, StepRow
from gpu_training import TrainingRow

from fusedopt.benchmark.implementations import OURS
from fusedopt.benchmark.parameter_sets import GPU_SETS
from fusedopt.benchmark.timing import Spread

pytestmark = pytest.mark.one_torch


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
    training = TrainingRow(
        "lenet", "AdamW", OURS, "graph", 64, us=Spread(90.0, 80.0, 100.0), step_us=Spread(9.0, 9.0, 9.0)
    ).as_dict()
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
    assert report[-1] == "| lenet AdamW graph | fusedopt | 90.0 | 711,111 | 10.0% |  |"
    assert "| LAMB float32, BERT-large: of the copy's bandwidth | at least 85% | 86.0% | met |" in report
    assert "| AdamW float32, GPT-2 XL: of the copy's bandwidth | at least 92% |  | not run |" in report


def test_report_of_nothing() -> None:
    assert {goal.result for goal in goals([])} == {"not run"}
    assert markdown([]).startswith(".\n\n| goal, on an H200 |")


def row(optimizer: str, parameter_set: str, implementation: str, us: float, **values: Any) -> dict[str, Any]:
    elements = GPU_SETS[parameter_set].elements
    made = StepRow(optimizer, parameter_set, implementation, "float32", 1, elements, 28 * elements, 4000.0)
    made.device_us = made.wall_us = Spread(us, us, us)
    for name, value in values.items():
        setattr(made, name, value)
    return made.as_dict()


def result(lines: list[dict[str, Any]], what: str) -> str:
    (found,) = [goal.result for goal in goals(lines) if goal.what.startswith(what)]
    return found


@pytest.mark.parametrize(("share", "expected"), [(0.95, "met"), (0.9, "missed")])
def test_a_goal_of_bandwidth(share: float, expected: str) -> None:
    us = 28 * GPU_SETS["gpt2-xl"].elements / (4000e9 * share) * 1e6
    lines = [row("AdamW", "gpt2-xl", OURS, us, ratios={"fused": Spread(1.02, 1, 1)})]
    assert result(lines, "AdamW float32, GPT-2 XL: of the copy") == expected
    assert result(lines, "AdamW float32, GPT-2 XL: device time") == "missed"
    lines.append(row("AdamW", "gpt2-xl", "fused", us * 0.9))  # which then moves more than 93 % itself
    assert result(lines, "AdamW float32, GPT-2 XL: device time") == "met"


@pytest.mark.parametrize(("stored", "share", "expected"), [("masters", 0.84, "missed"), ("8bit", 0.76, "met")])
def test_a_goal_of_a_format(stored: str, share: float, expected: str) -> None:
    us = 28 * GPU_SETS["gpt2-xl"].elements / (4000e9 * share) * 1e6
    work = {"kernels": 2, "copies": 0, "memsets": 0, "kernel_seconds": 1.0}
    lines = [row("AdamW", "gpt2-xl", OURS, us, dtype="bfloat16", format=stored, work=work)]
    assert result(lines, f"AdamW bfloat16 with {stored}, GPT-2 XL: of the copy") == expected
    assert {goal.result for goal in goals(lines)} == {expected, "not run"}, "it is a row of its own"
    assert f"AdamW, GPT-2 XL, bfloat16 {stored} |" in markdown(lines)


@pytest.mark.parametrize(("copies", "expected"), [(0, "met"), (1, "missed")])
def test_a_goal_of_launches(copies: int, expected: str) -> None:
    work = {"kernels": 1, "copies": copies, "memsets": 0, "kernel_seconds": 1.0}
    assert result([row("AdamW", "lenet", OURS, 9.0, work=work)], "launches") == expected


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(70, 1400, ["met", "met"]), (90, 1000, ["missed", "missed"])])
def test_goals_of_host_time(ours: float, theirs: float, expected: list[str]) -> None:
    lines = [
        row("AdamW", "bert-large", name, 1.0, host_us=Spread(us, us, us))
        for name, us in ((OURS, ours), ("fused", theirs))
    ]
    found = [goal.result for goal in goals(lines) if goal.what.startswith("AdamW float32, BERT-large: host time")]
    assert found == expected
