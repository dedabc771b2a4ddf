"""What `make gpu` measures of a step, on the CPU: its counts, and what becomes of failures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import gpu_steps
import gpu_training
import pytest
import torch
from gpu_steps import COMPILED, Backward, StepRow, step_row
from torch import Tensor, nn

from fusedopt.benchmark import rivals
from fusedopt.benchmark.devices import Host, Work
from fusedopt.benchmark.implementations import CASES, GPU_CASES, OURS
from fusedopt.benchmark.parameter_sets import GPU_SETS, ParameterSet
from fusedopt.benchmark.timing import Spread

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]

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


@pytest.mark.parametrize(("stored", "moved"), [("masters", 2 * 3 + 2 * 2 + 2 * 8), ("stochastic", 2 * 7)])
def test_bytes_are_those_of_the_format(stored: str, moved: int) -> None:
    """Masters: parameter, gradient and rest of two bytes each, states of four; all but the gradient are written."""
    parameters = TINY.parameters(torch.bfloat16, torch.device("cpu"))
    case = CASES["AdamW"].stored(stored)
    rows = list(gpu_steps.measure(Host(), case, TINY, parameters, 1e9, seconds=0))
    assert [row.implementation for row in rows] == [OURS, "for-loop", "foreach", "fused"]
    assert {(row.format, row.dtype, row.error, row.bytes) for row in rows} == {(stored, "bfloat16", None, 13 * moved)}


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

    options = argparse.Namespace(
        set="gpt2-xl",
        dtypes=["float32"],
        optimizers=["AdamW"],
        formats=["plain"],
        seconds=0,
        compiled=False,
        tiny=False,
    )
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

    modules: dict[str, dict[str, Any]] = {}
    for rival in rivals.RIVALS:
        fakes = {name: fake(f"{rival.module}.{name}") for name, _ in rival.classes.values()}
        modules[rival.module] = modules.get(rival.module, {}) | fakes
    for module, fakes in modules.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**fakes))
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda package: None)
    assert rivals.rivals("AdamW") == {}
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda package: package)
    for case in CASES:
        for make in rivals.rivals(case).values():
            make(tiny())
    assert ("apex.optimizers.FusedLAMB", {"lr": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0}) in calls
    assert {name for name, _ in calls} == {
        f"{rival.module}.{name}" for rival in rivals.RIVALS for name, _ in rival.classes.values()
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


def test_training_step_is_a_step_of_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before: list[Tensor] = [p.detach().clone() for p in model.parameters()]
    run = gpu_training.training_step(model, optimizer, torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))
    run()
    assert not any(map(torch.equal, before, model.parameters()))
