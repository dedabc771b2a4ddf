"""The experiment on batch sizes compares what it says."""

import argparse

import batch_size as benchmark
import pytest

from fusedopt.data import make_hands
from fusedopt.tasks import TASKS, Task

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]

OPTIONS = argparse.Namespace(epochs=6, batch_size=5, lr=0.01, factor=4, seeds=2)


@pytest.fixture(scope="module")
def data():
    return make_hands(90, 30)


@pytest.fixture(scope="module")
def runs(data):
    return {name: benchmark.train(TASKS["hands"], data, name, 0, OPTIONS) for name in benchmark.REGIMES}


def test_regimes_share_the_noise_and_differ_in_batch_size_and_updates(runs):
    decaying, hybrid, increasing, control = runs.values()
    assert decaying.batch_sizes == control.batch_sizes == [5] * 6
    assert control.lrs == increasing.lrs == [0.01] * 6
    assert decaying.lrs == pytest.approx([0.01] * 2 + [0.0025] * 2 + [0.000625] * 2)
    assert increasing.batch_sizes == [5, 5, 20, 20, 80, 80]
    assert hybrid.batch_sizes == [5, 5, 20, 20, 20, 20]
    assert hybrid.lrs == pytest.approx([0.01] * 4 + [0.0025] * 2)
    assert [run.updates for run in runs.values()] == [6 * 18, 2 * 18 + 4 * 5, 2 * 18 + 2 * 5 + 2 * 2, 6 * 18]


def test_regimes_are_one_training_until_the_first_decay(runs):
    first, *others = runs.values()
    for run in others:
        assert run.losses[:2] == first.losses[:2]
        assert run.losses[2:] != first.losses[2:]


def test_results_follow_from_the_seed(runs, data):
    again = benchmark.train(TASKS["hands"], data, "hybrid", 0, OPTIONS)
    assert again == runs["hybrid"]
    assert benchmark.train(TASKS["hands"], data, "hybrid", 1, OPTIONS).losses != again.losses


def test_tables(data, monkeypatch, capsys, threads):
    monkeypatch.setitem(benchmark.TASKS, "hands", Task(lambda folder, notify: data, "lenet"))
    benchmark.main(["--epochs", "3", "--seeds", "2", "--batch-size", "30"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    summary, curves = rows[:6], rows[6:]
    assert [row[0] for row in summary[2:]] == list(benchmark.REGIMES)
    assert summary[2][1:4] == ["30", "0.01, 0.002, 0.0004", "9"]
    assert summary[4][1:4] == ["30, 90", "0.01, 0.006, 0.0012", "5"]  # an epoch has no more than 90 images
    assert [row[0] for row in curves[2:]] == ["1", "2", "3"]
    assert all(" ± " in cell for row in curves[2:] for cell in row[1:])
