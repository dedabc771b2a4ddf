"""The Markdown of a run on a GPU: what it ran on, what failed, and a table per question."""

from collections.abc import Iterable, Sequence
from typing import Any

from goals import goals
from gpu_steps import COMPILED, StepRow, step_row
from gpu_training import TrainingRow, training_row
from report import in_order

from fusedopt.benchmark.implementations import OURS
from fusedopt.benchmark.parameter_sets import GPU_SETS
from fusedopt.benchmark.timing import Spread

RIVALS = ("fused", "foreach", "for-loop", COMPILED, "apex", "deepspeed", "transformer_engine", "bitsandbytes")


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """A short report of all lines of a run."""
    steps = [step_row(line) for line in lines if line["kind"] == "step"]
    training = [training_row(line) for line in lines if line["kind"] == "training"]
    stages = [line for line in lines if line["kind"] == "stage"]
    copies = [line["gb_per_s"] for line in lines if line["kind"] == "copy"]
    parts = [_machine(lines, copies)]
    if stages:
        parts.append(
            _table(["stage", "result", "seconds"], [[s["name"], s["result"], f"{s['seconds']:.0f}"] for s in stages])
        )
    failures = [f"{line['what']}: {line['error']}" for line in lines if line["kind"] == "failure"]
    failures += [f"{_name(row)}, {row.implementation}: {row.error}" for row in steps if row.error]
    failures += [
        f"training {row.model} {row.optimizer} {row.mode}, {row.implementation}: {row.error}"
        for row in training
        if row.error
    ]
    if failures:
        parts.append("Not measured:\n\n" + "\n".join(f"- {failure}" for failure in failures))
    parts.append(_table(["goal, on an H200", "goal", "measured", "result"], _goal_rows(lines)))
    if tuned := [line for line in lines if line["kind"] == "tune"]:
        parts.append(_tune_table(tuned))
    if any(row.device_us for row in steps):
        parts += [_device_table(steps), _host_table(steps)]
    if any(row.us for row in training):
        parts.append(_training_table(training))
    return "\n\n".join(parts) + "\n"


def _machine(lines: Sequence[dict[str, Any]], copies: Sequence[float]) -> str:
    machine: dict[str, Any] = next((line["machine"] for line in lines if line["kind"] == "machine"), {})
    text = ", ".join(f"{name} {value}" for name, value in machine.items())
    if copies:
        text += f"; device-to-device copy {min(copies):,.0f} to {max(copies):,.0f} GB/s, read and written"
    return text + "."


def _goal_rows(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[g.what, g.goal, g.verdict[0] if g.verdict else "", g.result] for g in goals(lines)]


def _tune_table(lines: Sequence[dict[str, Any]]) -> str:
    """A row per build, the fastest first: how much of the copy's bandwidth each case reaches."""
    cases = in_order(case for line in lines for case in line["shares"])
    ranked = sorted(lines, key=lambda line: -sum(line["shares"].values()))
    rows = [
        [line["name"], *(f"{line['shares'][c]:.1%}" if c in line["shares"] else "" for c in cases)] for line in ranked
    ]
    return _table(["compile-time choices, share of copy", *cases], rows)


def _device_table(rows: Sequence[StepRow]) -> str:
    """A line per case: the device time of ours, what it moves, and how many times faster than the others."""
    others = [name for name in RIVALS if any(row.implementation == name and row.device_us for row in rows)]
    header = ["device time of a step", "µs", "GB/s", "of copy", "launches, copies, memsets"]
    table = []
    for ours in _ours(rows):
        assert ours.device_us is not None
        assert ours.gb_per_s is not None
        cells = [_name(ours), f"{ours.device_us.median:,.1f}", f"{ours.gb_per_s:,.0f}", f"{ours.copy_share:.0%}"]
        table.append([*cells, _work(ours), *(_times(ours.ratios.get(name)) for name in others)])
    return _table([*header, *(f"vs {name}" for name in others)], table)


def _host_table(rows: Sequence[StepRow]) -> str:
    """A line per case: host and wall time of ours and of torch's fastest forms, warm and after a backward."""
    forms = (OURS, "fused", "foreach")
    table = []
    for ours in _ours(rows):
        found = {row.implementation: row for row in rows if _name(row) == _name(ours) and row.device_us}
        found[OURS] = ours
        cells = [_name(ours)]
        for column in ("host_us", "wall_us", "wall_us_after_backward"):
            cells += [_median(getattr(found[form], column)) if form in found else "" for form in forms]
        table.append(
            [*cells, f"{ours.changed_addresses} of {ours.tensors}" if ours.changed_addresses is not None else ""]
        )
    header = [f"{what}, {form}" for what in ("host µs", "wall µs", "wall µs after a backward") for form in forms]
    return _table(["a step with its host", *header, "addresses changed"], table)


def _training_table(rows: Sequence[TrainingRow]) -> str:
    """A line per model, optimizer, mode and implementation, with how many times faster ours is."""
    table = []
    for row in (row for row in rows if row.us):
        ours = next((r for r in rows if r.implementation == OURS and _task(r) == _task(row)), row)
        cells = [" ".join(_task(row)), row.implementation, _median(row.us), f"{row.images_per_second:,.0f}"]
        share = "" if row.step_share is None else f"{row.step_share:.1%}"
        table.append([*cells, share, _times(ours.ratios.get(row.implementation))])
    return _table(["a whole training step", "with", "µs", "images/s", "the optimizer's share", "ours is faster"], table)


def _task(row: TrainingRow) -> tuple[str, str, str]:
    return row.model, row.optimizer, row.mode


def _ours(rows: Iterable[StepRow]) -> list[StepRow]:
    """Ours, a row per case: the ratios to the compiled form come from a run of their own."""
    merged: dict[str, StepRow] = {}
    for row in rows:
        if row.implementation != OURS or row.device_us is None:
            continue
        first = merged.setdefault(_name(row), row)
        first.ratios = {**row.ratios, **first.ratios}
    return list(merged.values())


def _name(row: StepRow) -> str:
    stored = "" if row.format == "plain" else f" {row.format}"
    return f"{row.optimizer}, {GPU_SETS[row.parameter_set].title}, {row.dtype}{stored}"


def _work(row: StepRow) -> str:
    return ", ".join(str(row.work[kind]) for kind in ("kernels", "copies", "memsets")) if row.work else ""


def _median(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:,.1f}"


def _times(ratio: Spread | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f}x ({ratio.low:.2f} .. {ratio.high:.2f})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
