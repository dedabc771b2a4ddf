"""The benchmark measures what it says: exact parameter sets, a correct LAMB to compare with, sound statistics.

Nothing here asserts on a time.
"""

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import step
import torch
from report import Row, disturbed, geometric_means, markdown
from stream_loop import StreamLoop
from torch import Tensor

from fusedopt.benchmark import timing
from fusedopt.benchmark.implementations import CASES, IMPLEMENTATIONS, OURS, OptimizerCase
from fusedopt.benchmark.parameter_sets import SETS
from fusedopt.benchmark.timing import Sample, Spread, interleave

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# Parameter sets


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("lenet", 10, 44_426),
        ("small", 1000, 64_000),
        ("resnet50", 161, 25_557_032),
        ("large", 1, 16_777_216),
        ("gpt2", 148, 124_439_808),
    ],
)
def test_counts(name: str, tensors: int, elements: int) -> None:
    assert len(SETS[name].shapes) == tensors
    assert SETS[name].elements == elements


def test_resnet50_shapes_are_torchvisions() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in models.resnet50(weights=None).parameters()]
    # torchvision registers a block's shortcut after its convolutions, as here.
    assert shapes == list(SETS["resnet50"].shapes)


def test_parameters_have_gradients_and_repeat() -> None:
    first, second = (SETS["lenet"].parameters(torch.bfloat16, CPU) for _ in range(2))
    for p, q in zip(first, second, strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.dtype == torch.bfloat16
        assert p.grad.count_nonzero() > 0
        assert torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)


# Statistics


def test_ratios_are_taken_within_repeats() -> None:
    # The machine halves its speed after two repeats: both see it, and the ratio does not.
    ours, theirs = Sample(1, [1.0, 1.0, 2.0, 2.0]), Sample(1, [3.0, 3.0, 6.0, 6.0])
    assert ours.relative_to(theirs) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def test_interleave_batches_short_calls_and_stops_in_time() -> None:
    collecting = []

    def clock(run: object, calls: int) -> float:
        collecting.append(gc.isenabled())
        return {"short": 0.001, "long": 0.5}[str(run)]

    samples = interleave({"short": "short", "long": "long"}, clock, repeats=21, seconds=4.0)  # type: ignore[dict-item]
    assert (samples["short"].calls, samples["long"].calls) == (10, 1)
    assert samples["short"].seconds == [0.001] * 7
    assert samples["long"].seconds == [0.5] * 7
    assert not any(collecting)
    assert gc.isenabled()


def test_a_machine_that_slows_down_does_not_prolong_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def clock(run: object, calls: int) -> float:
        now[0] += 0.5 if now[0] < 4 else 10.0
        return 0.5

    runs = {"a": "a", "b": "b"}
    samples = interleave(runs, clock, repeats=21, seconds=20.0, fewest=2)  # type: ignore[arg-type]
    assert len(samples["a"].seconds) == len(samples["b"].seconds) == 3


def test_turns_are_whole_repeats_in_changing_orders() -> None:
    names = list(timing.turns(["a", "b", "c"], most=20))
    repeats = [tuple(names[i : i + 3]) for i in range(0, 60, 3)]
    assert len(names) == 60
    assert {frozenset(repeat) for repeat in repeats} == {frozenset("abc")}
    assert len(set(repeats)) > 3
    assert len(list(timing.turns(["a"], most=9, fewest=4, seconds=0))) == 4
    assert len(list(timing.turns(["a"], most=3, fewest=5))) == 3


def test_marks_are_seconds_on_the_host() -> None:
    start = timing.mark(CPU)
    assert 0 <= timing.between(start, timing.mark(CPU)) < 60
    with pytest.raises(ValueError, match="no clock for device type 'meta'; there is one for cpu and cuda"):
        timing.clock_for(torch.device("meta"))


def test_subnormal_states_are_refused() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    optimizer.state[parameter]["momentum_buffer"] = torch.tensor([0.0, 1.0, -1.0])
    step.check_no_subnormals("zero is fine", optimizer)
    optimizer.state[parameter]["momentum_buffer"][0] = -1e-40
    with pytest.raises(RuntimeError, match="SGD: a parameter or state has subnormal values"):
        step.check_no_subnormals("SGD", optimizer)


# The loop and the script


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_loop_moves_the_bytes_of_the_rule(case: OptimizerCase) -> None:
    loop = StreamLoop(case.passes, 1000, torch.bfloat16, threads=2)
    before = [array.clone() for array in loop.arrays]
    loop()
    writes = max(writes for _, writes in case.passes)
    assert [not torch.equal(a, b) for a, b in zip(loop.arrays, before, strict=True)] == [
        index < writes for index in range(len(before))
    ]
    assert loop.bytes == case.accesses * 1000 * 2


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_implementations_agree_and_report_the_rules_bytes(case: OptimizerCase) -> None:
    """All do the same work, also on gradients that are used again; ASGD's rates are float32 in torch's foreach form."""
    after: dict[str, list[Tensor]] = {}
    for name, factory in case.factories().items():
        params = SETS["lenet"].parameters(torch.float64, CPU)
        optimizer = factory(params)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for _ in range(3):
            optimizer.step()
        after[name] = [p.detach() for p in params]
        if name == OURS:
            assert optimizer.bytes_per_step() == case.accesses * SETS["lenet"].elements * 8  # type: ignore[attr-defined]
    for name, values in after.items():
        for value, expected in zip(values, after["for-loop"], strict=True):
            assert torch.allclose(value, expected, rtol=1e-6 if case.name == "ASGD" else 1e-9, atol=1e-12), name


def test_script_writes_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "run.json"
    step.main(["--sets", "lenet", "--optimizers", "SGD", "LAMB", "--repeats", "2", "--markdown", "--json", str(target)])
    run = json.loads(target.read_text())
    assert {"date", "cpu", "cores", "threads", "torch", "fusedopt"} <= run["machine"].keys()
    assert {(row["optimizer"], row["implementation"]) for row in run["rows"]} == {
        *(("SGD", name) for name in (*IMPLEMENTATIONS, step.LOOP)),
        *(("LAMB", name) for name in (OURS, "for-loop", "foreach", step.LOOP)),
    }
    for row in run["rows"]:
        assert row.keys() == Row.__dataclass_fields__.keys()
        assert row["repeats"] == 2
        assert row["us"]["low"] <= row["us"]["median"] <= row["us"]["high"]
        assert row["gb_per_s"] > 0
        assert row["loop_share"] > 0
        assert (row["ratio"] is None) == (row["implementation"] == step.LOOP)
        if row["implementation"] == row["fastest_native"]:
            assert row["ratio"]["median"] == 1.0
    assert run["geometric_means"].keys() == {"SGD", "LAMB", "all"}
    printed = capsys.readouterr().out
    assert "# torch: " in printed
    assert "| SGD |" in printed
    assert "geometric mean over the parameter sets" in printed


def test_geometric_mean_and_table() -> None:
    def row(parameter_set: str, ratio: float, busy: float = 0.0) -> Row:
        measured = (Spread(1.0, 1.0, 1.0), 12, 1.0, 1.0, "fused", Spread(ratio, ratio, ratio), busy)
        return Row("SGD", parameter_set, OURS, 1, 1, "float32", 1, 1, *measured)

    rows = [row("lenet", 8.0), row("gpt2", 2.0)]
    assert geometric_means(rows) == pytest.approx({"SGD": 4.0, "all": 4.0})
    table = markdown({"cpu": "some CPU", "threads": 2, "torch": "2"}, rows).splitlines()
    assert table[0] == "| optimizer | LeNet | GPT-2 124M | geometric mean |"
    assert table[2] == "| SGD | 8.00x vs fused | 2.00x vs fused | 4.00x |"
    assert "Not to be quoted" not in table[-1]

    rows.append(row("small", 3.0, busy=1.5))
    assert disturbed(rows) == ["SGD small (1.5 cores)"]
    assert "Not to be quoted" in markdown({"cpu": "some CPU", "threads": 2, "torch": "2"}, rows)


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "run.png"
    step.main(["--sets", "lenet", "--optimizers", "SGD", "RMSprop", "--repeats", "1", "--plot", str(target)])
    assert target.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="--plot needs matplotlib"):
        step.main(["--sets", "lenet", "--plot", str(tmp_path / "run.png")])
