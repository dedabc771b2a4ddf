"""The benchmark of the loop that is taught: all loops do the same work, and the table says what was measured."""

import re
from functools import partial

import pytest
import slide_loop
import torch
import vision

from fusedopt.data import make_hands
from fusedopt.models import CNN2, HandClassifier
from fusedopt.tasks import TASKS, Task
from fusedopt.training import Settings, seeded

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module", autouse=True)
def needed():
    vision.torchvision()


@pytest.fixture(scope="module")
def data():
    return make_hands(90, 30)


@pytest.mark.parametrize("model", [HandClassifier, lambda: CNN2(5, 0.3)], ids=["lenet", "dropout"])
def test_both_loops_train_the_same_weights(data, monkeypatch, model):
    monkeypatch.setattr(slide_loop, "LR", 0.02)  # so that the weights move by more than the tolerance
    results = []
    for loop in (slide_loop.slide, partial(slide_loop.ours, settings=Settings())):
        network = seeded(model, 0)
        torch.manual_seed(0)
        results.append(loop(network, data, batch_size=8, seed=3))
    theirs, ours = results
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    start = seeded(model, 0)
    for before, a, b in zip(*(m.parameters() for m in (start, theirs.model, ours.model)), strict=True):
        assert (a - before).abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_bound_runs_every_batch_and_changes_nothing(data):
    network, batches = seeded(HandClassifier, 0), []
    network.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    settings = Settings(amp="bf16", channels_last=True, onednn=False)
    slide_loop.bound(network, data, batch_size=40, seed=0, settings=settings)
    assert batches == [40, 40, 10]
    assert all(map(torch.equal, network.parameters(), seeded(HandClassifier, 0).parameters()))
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("options", [[], ["--channels-last", "--no-onednn", "--amp", "bf16"]], ids=["plain", "tuned"])
def test_table(data, monkeypatch, capsys, options):
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, "lenet"))
    slide_loop.main(["--task", "hands", "--images", "50", "--batch-size", "10", "--repeats", "2", *options])
    output = capsys.readouterr().out
    assert "50 images in batches of 10" in output
    assert ("channels-last, without oneDNN, bf16" in output) == bool(options)
    rows = [line.split() for line in output.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["slides", "fusedopt", "bound"]
    assert all(re.fullmatch(r"\d+\.\d\dx", row[2]) for row in rows)
    for column in (-2, -1):  # the losses of the epoch and of the test images
        assert float(rows[0][column]) == pytest.approx(float(rows[1][column]), abs=2e-3 if options else 2e-5)
    assert torch.backends.mkldnn.enabled
