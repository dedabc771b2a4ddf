"""Simulation, pictures, and the command that draws them."""

import copy
import math
import struct

import pytest
import torch
from command_line import Hide, plain
from command_line import run as command
from schedule_runs import lrs, parameter, run, sgd
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LambdaLR,
    MultiplicativeLR,
    OneCycleLR,
    ReduceLROnPlateau,
)

import fusedopt
from fusedopt.schedulers import ExponentialDecayLR, HalvingLR, InverseDecayLR, WarmupLR, plot_schedules, simulate
from fusedopt.schedulers.gallery import GALLERY, OURS, simulate_named

SCHEDULES = {
    "halving": lambda o: HalvingLR(o, 2),
    "warmup-cycle": lambda o: WarmupLR(o, 2, after=OneCycleLR(o, 0.3, 20)),
    "cyclic": lambda o: CyclicLR(o, 0.01, 0.1, 3),
    "cosine": lambda o: CosineAnnealingLR(o, 5),
    "lambda": lambda o: LambdaLR(o, lambda t: 1 / (1 + t)),
    "multiplicative": lambda o: MultiplicativeLR(o, lambda t: 0.9),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("start", [0, 4])
def test_simulation_is_what_happens_then(name, start):
    schedule = SCHEDULES[name](sgd(0.1, 0.03))
    run(schedule, start)
    optimizer = schedule.optimizer
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
    state = {key: value for key, value in schedule.state_dict().items() if key != "_scale_fn_ref"}
    state = copy.deepcopy(state)
    simulation = simulate(schedule, 10)
    assert optimizer.state_dict()["param_groups"] == groups
    assert {key: value for key, value in schedule.state_dict().items() if key != "_scale_fn_ref"} == state
    assert simulation.lr.dtype == simulation.momentum.dtype == torch.float64
    for lr, momentum in zip(simulation.lr.tolist(), simulation.momentum.tolist(), strict=True):
        assert lrs(optimizer) == lr
        assert [group["momentum"] for group in optimizer.param_groups] == momentum
        optimizer.step()
        schedule.step()


def test_tensor_learning_rates_are_left_alone():
    lr = torch.tensor(0.1)
    schedule = HalvingLR(sgd(lr))
    assert simulate(schedule, 3).lr[:, 0].tolist() == pytest.approx([0.1, 0.05, 0.025])
    assert lr.item() == pytest.approx(0.1)
    assert schedule.optimizer.param_groups[0]["lr"] is lr


def test_momentum_is_beta1_and_nan_where_there_is_none():
    adam = fusedopt.Adam([parameter()], betas=(0.7, 0.9))
    assert simulate(HalvingLR(adam), 2).momentum.tolist() == [[0.7], [0.7]]
    simulation = simulate(HalvingLR(fusedopt.Adagrad([parameter()])), 2)
    assert all(math.isnan(m) for row in simulation.momentum.tolist() for m in row)
    assert not simulation.changes_momentum
    assert simulate(CyclicLR(adam, 0.1, 0.2, 3), 3).changes_momentum


def test_too_few_metrics_and_steps_are_refused():
    schedule = ReduceLROnPlateau(sgd(0.1))
    with pytest.raises(ValueError, match="5 steps need 4 metrics, not 3"):
        simulate(schedule, 5, [1, 1, 1])
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        simulate(HalvingLR(sgd(0.1)), 0)
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs a metric at each step; pass metrics"):
        simulate(schedule, 5)


def test_the_picture_shows_what_was_simulated():
    schedules = {"halved": HalvingLR(sgd(0.1, 0.03), 2), "cycled": CyclicLR(sgd(0.1), 0.01, 0.1, 3)}
    figure = plot_schedules(schedules, 9)
    halved, cycled, momentum = figure.axes
    assert [line.get_ydata().tolist() for line in halved.get_lines()] == simulate(schedules["halved"], 9).lr.T.tolist()
    assert cycled.get_title(loc="left") == "cycled"
    (line,) = momentum.get_lines()
    assert line.get_ydata().tolist() == simulate(schedules["cycled"], 9).momentum[:, 0].tolist()
    (only,) = plot_schedules([InverseDecayLR(sgd(0.1), 0.1)], 3).axes
    assert only.get_title(loc="left") == "InverseDecayLR"
    assert only.get_ylim()[1] > 0.1
    with pytest.raises(ValueError, match="pass at least one schedule"):
        plot_schedules([], 3)


def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setattr("sys.meta_path", [Hide("matplotlib")])
    monkeypatch.delitem(__import__("sys").modules, "matplotlib.figure", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedopt\[examples\]'"):
        plot_schedules([ExponentialDecayLR(sgd(0.1), 0.1)], 3)


# The command


@pytest.mark.parametrize("name", GALLERY)
def test_named_schedules_fill_the_run(name):
    for steps in (2, 3, 5, 32, 1000):
        lr = simulate_named(name, steps, max_lr=1e-3, min_lr=1e-4).lr
        assert lr.shape == (steps, 1)
        assert 0 <= lr.min() <= lr.max() <= 1e-3 * (1 + 1e-12)
    assert len(set(lr[:, 0].tolist())) > 1


def test_command_draws(tmp_path):
    picture = tmp_path / "one.png"
    result = command("plot-schedule", "one-cycle", "--max-lr", "1e-3", "--steps", 32, "--out", picture)
    assert result.stdout == f"{picture}: one-cycle; 32 steps\n"
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    one = struct.unpack(">2I", content[16:24])
    command("plot-schedule", "ours", "--out", picture)
    ours = struct.unpack(">2I", picture.read_bytes()[16:24])
    assert len(OURS) == 12
    assert ours[0] > 2 * one[0]  # three panels wide
    assert ours[1] > 3 * one[1]  # four high


@pytest.mark.parametrize("name", ["cosine", "flat-cosine", "warm-restarts", "triangular", "exponential-decay"])
def test_the_lowest_learning_rate_may_be_0_where_a_schedule_can_end_there(name):
    with_0, above = (simulate_named(name, 8, 0.1, low).lr for low in (0.0, 1e-9))
    torch.testing.assert_close(with_0, above, rtol=0, atol=2e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sine"], "unknown schedule 'sine'; choose one of exponential-decay, halving,"),
        (["cosine", "--min-lr", "1"], "the lowest learning rate, 1, must be at least 0 and at most the highest, 0.001"),
        (["cosine", "--max-lr", "-1"], "the highest learning rate must be above 0 and finite, not -1"),
        (["cosine", "--steps", "1"], "Invalid value for '--steps'"),
    ],
)
def test_usage_errors_exit_with_2(tmp_path, arguments, message):
    out = tmp_path / "x.png"
    assert message in plain(command("plot-schedule", *arguments, "--out", out, code=2).stderr)
    assert not out.exists()


@pytest.mark.parametrize("name", ["missing/x.png", "x.unknown"])
def test_a_picture_that_cannot_be_written_is_named(tmp_path, name):
    (line,) = command("plot-schedule", "cosine", "--out", tmp_path / name, code=1).stderr.splitlines()
    assert line.startswith(f"fusedopt: {tmp_path / name} cannot be written")
    assert "--out" in line
