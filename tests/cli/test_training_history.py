"""`fusedopt train --capture`: the history goes on over every kind of interruption."""

import pytest
import torch
from command_line import train

from fusedopt.gradients import History
from fusedopt.training import Checkpoint
from fusedopt.training.metrics import EarlyStopping, Metrics

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]
OPTIONS = ("--capture", "--batch-size", 3)  # 134 steps an epoch: more than there are records of every step


@pytest.fixture
def straight(fashion):
    train(fashion, *OPTIONS, "--epochs", 2, "--out", "straight")
    return History.load(fashion / "straight" / "history.pt")


def assert_same(history, expected):
    assert (history.steps, history.epochs) == (expected.steps, expected.epochs)
    for kind in ("gradients", "parameters"):
        torch.testing.assert_close(getattr(history, kind), getattr(expected, kind), rtol=0, atol=0, equal_nan=True)


def test_a_history_goes_on_where_the_run_does(fashion, straight):
    assert straight.steps == [*range(0, 268, 2)]
    assert straight.epochs == [134, 268]
    train(fashion, *OPTIONS, "--epochs", 1, "--out", "run")
    assert History.load(fashion / "run" / "history.pt").steps == [*range(134)]
    train(fashion, *OPTIONS, "--epochs", 2, "--out", "run", "--resume")
    assert_same(History.load(fashion / "run" / "history.pt"), straight)


def test_an_interruption_leaves_what_there_is(fashion, straight, monkeypatch):
    calls = 0
    original = Metrics.add

    def interrupt(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 240:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "add", interrupt)
        train(fashion, *OPTIONS, "--epochs", 2, "--out", "run", code=130)
    history = History.load(fashion / "run" / "history.pt")
    assert (history.steps, history.epochs) == ([*range(0, 240, 2)], [134])
    train(fashion, *OPTIONS, "--epochs", 2, "--out", "run", "--resume")
    assert_same(History.load(fashion / "run" / "history.pt"), straight)


@pytest.mark.parametrize("moment", ["after the history", "before it"])
def test_a_kill_leaves_what_the_epochs_left(fashion, straight, monkeypatch, moment):
    cls, name = (Checkpoint, "save") if moment == "after the history" else (EarlyStopping, "update")

    def die(self, *arguments, **options):
        if options.get("epoch") == 2 or getattr(self, "best", -1) >= 0:  # in the second epoch
            raise SystemExit(1)
        return original(self, *arguments, **options)

    original = getattr(cls, name)
    with monkeypatch.context() as patch:
        patch.setattr(cls, name, die)
        train(fashion, *OPTIONS, "--epochs", 2, "--out", "run", code=1)
    assert History.load(fashion / "run" / "history.pt").epochs == ([134, 268] if cls is Checkpoint else [134])
    train(fashion, *OPTIONS, "--epochs", 2, "--out", "run", "--resume")
    assert_same(History.load(fashion / "run" / "history.pt"), straight)


def test_a_history_that_begins_late_counts_the_steps_before(fashion):
    train(fashion, "--batch-size", 40, "--epochs", 1, "--out", "run")
    train(fashion, "--batch-size", 40, "--epochs", 2, "--out", "run", "--resume", "--capture")
    history = History.load(fashion / "run" / "history.pt")
    assert (history.steps, history.epochs) == ([*range(10, 20)], [10, 20])
    path = fashion / "run" / "history.pt"
    path.write_bytes(path.read_bytes()[:-9])
    options = ("--batch-size", 40, "--epochs", 3, "--out", "run", "--resume")
    (line,) = train(fashion, *options, "--capture", code=1).stderr.splitlines()
    assert "history.pt: truncated or corrupt" in line
    train(fashion, *options)
