"""`make gpu` without a GPU: its whole flow on the CPU, what it makes of failures, its counts and its tables."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import devices
import gpu_steps
import gpu_training
import implementations
import pytest
import torch
from devices import Cuda, Host, Work
from gpu_report import markdown
from gpu_steps import COMPILED, Backward, StepRow, step_row
from gpu_training import TrainingRow
from implementations import CASES, GPU_CASES, OURS
from parameter_sets import GPU_SETS, ParameterSet
from timing import Spread
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

# tests/ has a module of this name, too.
SCRIPT = Path(devices.__file__).with_name("gpu.py")
_spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
driver = importlib.util.module_from_spec(_spec)
sys.modules["gpu_benchmark"] = driver  # where dataclasses look their annotations up
_spec.loader.exec_module(driver)

TINY = ParameterSet("tiny", "Tiny", ((3,), (2, 5)))


# ---- Counts ----


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("lenet", 10, 44_426),
        ("thousand", 1000, 3_500_000),
        ("resnet50", 161, 25_557_032),
        ("bert-large", 398, 336_226_108),  # transformers' BertForPreTraining
        ("gpt2-xl", 580, 1_557_611_200),  # transformers' GPT2LMHeadModel
        ("giant", 1, 2**30),
    ],
)
def test_parameter_sets(name: str, tensors: int, elements: int) -> None:
    assert len(GPU_SETS[name].shapes) == tensors
    assert GPU_SETS[name].elements == elements


def test_bytes_of_a_float32_parameter() -> None:
    needed = {"AdamW": 28, "SGD-Nesterov": 20, "RMSprop": 20, "LAMB": 44, "AdamW-clip": 32}
    assert {name: 4 * CASES[name].accesses for name in GPU_CASES} == needed


# ---- A step ----


def tiny() -> list[nn.Parameter]:
    return TINY.parameters(torch.float32, torch.device("cpu"))


def measured(case: str, device: Host | None = None, **options: Any) -> dict[str, StepRow]:
    rows = gpu_steps.measure(device or Host(), CASES[case], TINY, tiny(), 1e9, seconds=0, **options)
    return {row.implementation: row for row in rows}


@pytest.mark.parametrize("case", GPU_CASES)
def test_every_implementation_is_measured(case: str) -> None:
    rows = measured(case)
    assert list(rows) == list(CASES[case].factories())
    for name, row in rows.items():
        assert row.error is None
        assert row.repeats == gpu_steps.FEWEST_REPEATS
        assert row.ratios.keys() == rows.keys() - {name}
        assert row.bytes == CASES[case].accesses * 13 * 4
        for spread in (row.device_us, row.host_us, row.wall_us):
            assert spread is not None
            assert 0 < spread.low <= spread.median <= spread.high
        assert (row.wall_us_after_backward is None) == (row.changed_addresses is None) == (name == "for-loop")
        assert step_row(json.loads(json.dumps(row.as_dict()))) == row


def test_share_of_the_copy_bandwidth() -> None:
    row = StepRow("AdamW", "lenet", OURS, "float32", 10, 1000, 28_000, copy_gb_per_s=4000.0)
    assert row.copy_share is None
    row.device_us = Spread(10.0, 9.0, 11.0)
    assert row.gb_per_s == pytest.approx(2.8)
    assert row.copy_share == pytest.approx(0.0007)


class Broken(torch.optim.SGD):
    steps_left = 0

    def step(self, closure: Any = None) -> Any:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise RuntimeError("out of everything\nand more")
        return super().step()


@pytest.mark.parametrize("steps", [-1, 0, 3, 8])
def test_an_implementation_that_fails_costs_its_row_alone(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """When it is made, in its first step, among the repeats."""

    def make(parameters: Sequence[nn.Parameter]) -> Broken:
        broken = Broken(parameters, lr=1e-6)
        broken.steps_left = steps
        if steps < 0:
            broken.step()
        return broken

    monkeypatch.setattr(gpu_steps, "rivals", lambda case: {"apex": make})
    rows = measured("SGD-Nesterov")
    assert rows["apex"].error == "RuntimeError: out of everything"
    assert rows["apex"].device_us is None
    for name in (OURS, "fused"):
        assert rows[name].error is None
        assert rows[name].ratios.keys() == {OURS, "for-loop", "foreach", "fused"} - {name}


def test_launches_that_cannot_be_counted_cost_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    class NoProfiler(Host):
        def work(self, run: Callable[[], object]) -> Work | None:
            raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    rows = measured("SGD-Nesterov", NoProfiler())
    assert all(row.error is None and row.device_us and row.work is None for row in rows.values())
    assert "no launches counted: CUPTI" in capsys.readouterr().out


def test_a_backward_gives_the_same_gradients_elsewhere() -> None:
    parameters = tiny()
    before = [p.grad for p in parameters]
    backward, optimizer = Backward(parameters), torch.optim.SGD(parameters)
    assert backward(optimizer) == 2
    for p, gradient in zip(parameters, before, strict=True):
        assert p.grad is not gradient
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0)
    backward.restore()
    assert all(p.grad is gradient for p, gradient in zip(parameters, before, strict=True))


def test_gradients_are_as_before_after_a_measurement() -> None:
    parameters = tiny()
    before = [(p.grad, p.grad.clone()) for p in parameters if p.grad is not None]
    list(gpu_steps.measure(Host(), CASES["LAMB"], TINY, parameters, 1e9, seconds=0))
    for p, (gradient, values) in zip(parameters, before, strict=True):
        assert p.grad is gradient
        assert torch.equal(gradient, values)


def test_a_set_that_does_not_fit_is_left_out() -> None:
    class Small(Host):
        def free_bytes(self) -> int:
            return 2**20

    options = argparse.Namespace(set="gpt2-xl", dtypes=["float32"], optimizers=["AdamW"], seconds=0, compiled=False)
    copy, failure = gpu_steps.run(Small(), options)
    assert copy["kind"] == "copy"
    assert failure["what"] == "AdamW gpt2-xl torch.float32"
    assert failure["error"].startswith("needs 80 GiB of memory")


def test_the_compiled_form_has_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch, "compile", lambda step: made.append(step) or step)
    assert list(measured("AdamW", compiled=True)) == [OURS, "foreach", "fused", COMPILED]
    assert len(made) == 1


def test_other_packages_are_made_with_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def fake(name: str) -> Callable[..., Any]:
        return lambda parameters, **options: calls.append((name, options))

    for _, module, classes in implementations.RIVALS:
        fakes = {name: fake(f"{module}.{name}") for name, _ in classes.values()}
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**fakes))
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda package: None)
    assert implementations.rivals("AdamW") == {}
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda package: package)
    for case in GPU_CASES:
        for make in implementations.rivals(case).values():
            make(tiny())
    assert ("apex.optimizers.FusedLAMB", {"lr": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0}) in calls
    assert {name for name, _ in calls} == {
        f"{module}.{name}" for _, module, classes in implementations.RIVALS for name, _ in classes.values()
    }


# ---- Clipping and graphs ----


def test_torchs_own_clipping_comes_before_torchs_step() -> None:
    make = CASES["AdamW-clip"].factories()["fused"]
    parameters = [nn.Parameter(torch.ones(4))]
    parameters[0].grad = torch.full((4,), 1e6)
    make(parameters).step()
    torch.testing.assert_close(parameters[0].grad, torch.full((4,), 1e4 / 2))


@pytest.mark.parametrize("case", ["AdamW", "SGD-Nesterov"])
def test_optimizers_for_a_graph_are_capturable(case: str) -> None:
    for name, make in CASES[case].factories(capturable=True).items():
        group = make(tiny()).param_groups[0]
        assert group.get("capturable", True) is True, name


# ---- The device, with a stand-in for torch.cuda ----


class FakeEvent:
    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1e3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A Cuda whose clock moves by what it is told to spin: a card of 1 GHz."""

    def spin(cycles: int) -> None:
        FakeEvent.now += cycles / 1e9

    @contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    properties = SimpleNamespace(L2_cache_size=2**12, name="NVIDIA Test", total_memory=2**37, multi_processor_count=132)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Event": FakeEvent,
        "_sleep": spin,
        "synchronize": lambda *_: None,
        "get_device_properties": lambda _: properties,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _: (2**20, 2**21),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": nothing,
        "graph": nothing,
        "CUDAGraph": lambda: SimpleNamespace(replay="replay"),
    }
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Cuda(torch.device("cpu"))


def test_device_time_is_that_between_the_events(cuda: Cuda) -> None:
    cold = []
    cuda._cold = SimpleNamespace(sum=lambda: cold.append(FakeEvent.now))  # type: ignore[assignment]
    start = FakeEvent.now

    def run() -> None:
        FakeEvent.now += 0.002

    assert cuda.device_seconds(run, head_start=0.01) == pytest.approx(0.002)
    assert cold[0] - start == pytest.approx(0.0201), "the host had no head start"
    cuda.device_seconds(run, head_start=1.0)
    assert cold[1] - cold[0] == pytest.approx(0.002 + Cuda.MAX_HEAD_START)


def test_the_cold_buffer_is_four_times_the_cache(cuda: Cuda) -> None:
    assert cuda._cold.numel() * 4 >= 4 * 2**12


def test_device_describes_itself_and_captures(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(stdout="580.1\n")
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: done)
    described = cuda.describe()
    assert described["gpu"] == "NVIDIA Test"
    assert described["driver"] == "580.1"
    assert {"date", "torch", "cuda", "L2 MiB"} <= described.keys()
    calls: list[int] = []
    assert cuda.graph(lambda: calls.append(1)) == "replay"  # type: ignore[comparison-overlap]
    assert len(calls) == 4
    assert cuda.free_bytes() == 2**20


def test_no_driver_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(devices.subprocess, "run", missing)
    assert devices._driver() == "unknown"


def test_work_is_counted_by_kind(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = torch.autograd.DeviceType

    def event(name: str, device: Any = kinds.CUDA, annotation: bool = False) -> Any:
        span = SimpleNamespace(elapsed_us=lambda: 2.5)
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=annotation, time_range=span)

    events = [event("apply"), event("sum_squares"), event("Memcpy HtoD (Pageable -> Device)"), event("Memset (Device)")]
    events += [event("cudaLaunchKernel", kinds.CPU), event("Optimizer.step#AdamW.step", annotation=True)]

    @contextmanager
    def profile(activities: Any) -> Iterator[Any]:
        yield SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(torch.profiler, "profile", profile)
    ran: list[int] = []
    assert cuda.work(lambda: ran.append(1)) == Work(2, 1, 1, pytest.approx(10e-6))
    assert ran == [1]


def test_copy_bandwidth_counts_both_ways() -> None:
    class Clocked(Host):
        def device_seconds(self, run: Callable[[], object], head_start: float) -> float:
            run()
            return 0.5

        def free_bytes(self) -> int:
            return 32_000

    assert devices.copy_bandwidth(Clocked(), repeats=3) == 8 * 1000 / 0.5


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
    code = (
        "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(c.pid)); c.wait()"
    )
    outcome = driver.run_stage(stage(code), tmp_path / "log", 3)
    assert outcome.result.startswith("timed out after")
    assert not outcome.ok
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    assert not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] in "ZX"


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
    assert "left out: no time" in (tmp_path / "gpu.md").read_text()


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


def test_training_step_is_a_step_of_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before: list[Tensor] = [p.detach().clone() for p in model.parameters()]
    run = gpu_training.training_step(model, optimizer, torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))
    run()
    assert not any(map(torch.equal, before, model.parameters()))
