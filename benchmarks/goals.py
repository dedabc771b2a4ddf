"""The goals of a run on a GPU, each beside what was measured: met, missed or not run. They are for an H200."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_steps import COMPILED, StepRow, step_row
from gpu_training import TrainingRow, training_row

from fusedopt.benchmark.implementations import OURS
from fusedopt.benchmark.parameter_sets import GPU_SETS

LAUNCHES = {"AdamW": 1, "SGD-Nesterov": 1, "RMSprop": 1, "AdamW-clip": 2, "LAMB": 4}
COPY_SHARE = 0.92
FORMATS = {"masters": 0.85, "8bit": 0.75}  # with bfloat16 parameters, of their own bytes
AS_FAST_AS_A_COPY = 0.93  # of the copy's bandwidth: torch's fused form cannot be beaten by much where it moves as much
HOST_US = {"resnet50": 40, "bert-large": 80}

Verdict = tuple[str, bool] | None
"""What was measured and whether it is enough; None where it was not measured."""


@dataclass(frozen=True)
class Goal:
    """A row of the table."""

    what: str
    goal: str
    verdict: Verdict

    @property
    def result(self) -> str:
        """Met, missed or not run."""
        return "not run" if self.verdict is None else "met" if self.verdict[1] else "missed"


class _Rows:
    """The rows of a run, by what they are of."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        steps = [step_row(line) for line in lines if line["kind"] == "step"]
        steps = [row for row in steps if row.device_us and COMPILED not in row.ratios]  # which have a run of their own
        self._steps = {(r.optimizer, r.parameter_set, r.dtype, r.format, r.implementation): r for r in steps}
        training = [training_row(line) for line in lines if line["kind"] == "training"]
        self._training = {(r.model, r.optimizer, r.mode, r.implementation): r for r in training if r.us}

    def step(self, optimizer: str, parameter_set: str, implementation: str = OURS, *stored: str) -> StepRow | None:
        """``stored``: dtype and format, where they are not float32 and plain."""
        return self._steps.get((optimizer, parameter_set, *(stored or ("float32", "plain")), implementation))

    def ours(self) -> list[StepRow]:
        """In the plain format: another may take two launches, as small tensors keep their states in float32."""
        return [row for row in self._steps.values() if row.implementation == OURS and row.format == "plain"]

    def training(self, *key: str) -> TrainingRow | None:
        return self._training.get(key)  # type: ignore[arg-type]


def goals(lines: Sequence[dict[str, Any]]) -> list[Goal]:
    """All goals, in the order of their worth."""
    rows = _Rows(lines)
    made = []
    for parameter_set in ("gpt2-xl", "giant"):
        for optimizer in ("AdamW", "SGD-Nesterov", "RMSprop"):
            made += _bandwidth(rows, optimizer, parameter_set, COPY_SHARE)
    made += _bandwidth(rows, "LAMB", "bert-large", 0.85)
    for stored, share in FORMATS.items():
        for optimizer in ("AdamW", "SGD-Nesterov"):
            what = f"{optimizer} bfloat16 with {stored}, {GPU_SETS['gpt2-xl'].title}"
            made.append(_copy_share(what, rows.step(optimizer, "gpt2-xl", OURS, "bfloat16", stored), share))
    made.append(_launches(rows))
    for parameter_set, limit in HOST_US.items():
        made += _host(rows, parameter_set, limit)
    for parameter_set, factor in (("resnet50", 2), ("thousand", 10)):
        made += _wall(rows, parameter_set, factor)
    made.append(_graph(rows))
    return made


def _goal(what: str, goal: str, row: Any, verdict: Callable[[Any], Verdict]) -> Goal:
    return Goal(what, goal, None if row is None else verdict(row))


def _named(optimizer: str, parameter_set: str) -> str:
    return f"{optimizer} float32, {GPU_SETS[parameter_set].title}"


def _bandwidth(rows: _Rows, optimizer: str, parameter_set: str, share: float) -> list[Goal]:
    row, name = rows.step(optimizer, parameter_set), _named(optimizer, parameter_set)
    made = [_copy_share(name, row, share)]
    fused = rows.step(optimizer, parameter_set, "fused")
    rival = "foreach" if optimizer == "RMSprop" else "fused"
    least = 2.4 if optimizer == "RMSprop" else 1.05
    if fused and (fused.copy_share or 0) > AS_FAST_AS_A_COPY:
        least = 1.0
    if optimizer != "LAMB":
        made.append(_ratio(f"{name}: device time against torch's {rival}", row, rival, least))
    return made


def _copy_share(what: str, row: StepRow | None, share: float) -> Goal:
    def verdict(row: StepRow) -> Verdict:
        return None if row.copy_share is None else (f"{row.copy_share:.1%}", row.copy_share >= share)

    return _goal(f"{what}: of the copy's bandwidth", f"at least {share:.0%}", row, verdict)


def _ratio(what: str, row: StepRow | TrainingRow | None, rival: str, least: float) -> Goal:
    def verdict(row: StepRow | TrainingRow) -> Verdict:
        ratio = row.ratios.get(rival)
        return None if ratio is None else (f"{ratio.median:.2f}x", ratio.median >= least)

    return _goal(what, f"at least {least}x", row, verdict)


def _launches(rows: _Rows) -> Goal:
    counted = [row for row in rows.ours() if row.work and row.optimizer in LAUNCHES]
    over = []
    for row in counted:
        assert row.work is not None
        did = row.work["kernels"] + row.work["copies"] + row.work["memsets"]
        if did > LAUNCHES[row.optimizer]:
            over.append(f"{_named(row.optimizer, row.parameter_set)}: {did:.0f}")
    text = "; ".join(over) or f"in all {len(counted)} cases"
    return Goal(
        "launches, copies, memsets of a step, elementwise / with clip / LAMB with clip",
        "1 / 2 / at most 4",
        (text, not over) if counted else None,
    )


def _host(rows: _Rows, parameter_set: str, limit: float) -> list[Goal]:
    row, fused = rows.step("AdamW", parameter_set), rows.step("AdamW", parameter_set, "fused")
    name = _named("AdamW", parameter_set)
    ratio = fused.host_us.median / row.host_us.median if row and fused and row.host_us and fused.host_us else None
    return [
        _goal(
            f"{name}: host time",
            f"at most {limit} µs",
            row and row.host_us,
            lambda us: (f"{us.median:.1f} µs", us.median <= limit),
        ),
        _goal(f"{name}: host time against torch's fused", "at least 15x less", ratio, lambda r: (f"{r:.1f}x", r >= 15)),
    ]


def _wall(rows: _Rows, parameter_set: str, factor: float) -> list[Goal]:
    row, fused = rows.step("AdamW", parameter_set), rows.step("AdamW", parameter_set, "fused")
    name = _named("AdamW", parameter_set)

    def bound(row: StepRow) -> Verdict:
        if not (row.wall_us and row.host_us and row.device_us):
            return None
        share = row.wall_us.median / max(row.host_us.median, row.device_us.median)
        return f"{share:.2f}", share <= 1.15

    ratio = fused.wall_us.median / row.wall_us.median if row and fused and row.wall_us and fused.wall_us else None
    return [
        _goal(f"{name}: wall time over the larger of host and device", "at most 1.15", row, bound),
        _goal(
            f"{name}: wall time against torch's fused",
            f"at least {factor}x",
            ratio,
            lambda r: (f"{r:.2f}x", r >= factor),
        ),
    ]


def _graph(rows: _Rows) -> Goal:
    row = rows.training("lenet", "SGD-Nesterov", "graph", OURS)
    return _ratio("SGD-Nesterov, LeNet's training step in a graph, against torch's fused", row, "fused", 1.0)
