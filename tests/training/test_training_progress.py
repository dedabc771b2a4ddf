"""The progress bar: what it shows, and how rarely it looks."""

import io
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusedopt.data import make_hands
from fusedopt.training import ProgressBar, make_optimizer, train
from fusedopt.training.metrics import Metrics, Stopwatch, correct

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 3))


def test_the_bar_shows_loss_accuracy_speed_and_time_left():
    written = io.StringIO()
    model = network()
    bar = ProgressBar(interval=0, file=written)
    optimizer = make_optimizer("adamw", model.parameters())
    (epoch,) = train(model, optimizer, make_hands(40, 3), epochs=1, batch_size=10, progress=bar)
    frames = [frame for frame in written.getvalue().split("\r") if "loss" in frame]
    assert [frame.partition("%")[0].strip() for frame in frames] == ["25", "50", "75", "100"]
    assert f"loss {epoch.train_loss:.4f}, accuracy {100 * epoch.train_accuracy:.1f} %" in frames[-1]
    assert "images/s" in frames[0]
    assert "<" in frames[0]  # the time left


def test_the_bar_is_hidden_where_nobody_looks(capsys):
    model = network()
    optimizer = make_optimizer("adamw", model.parameters())
    list(train(model, optimizer, make_hands(40, 3), epochs=1, progress=ProgressBar(interval=0)))
    assert capsys.readouterr() == ("", "")


def test_the_bar_looks_at_the_metrics_rarely(monkeypatch):
    looks, now = [], [0.0]
    monkeypatch.setattr("fusedopt.training.progress.perf_counter", lambda: now[0])
    monkeypatch.setattr(Metrics, "loss", property(lambda self: looks.append(now[0]) or 0.0))
    batch = torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)
    for _ in ProgressBar(interval=0.5, file=io.StringIO())([batch] * 100, 100, Metrics(CPU, 100)):
        now[0] += 0.125
    assert looks == [0.5 * n for n in range(1, 26)]


def test_metrics_weigh_batches_by_their_images():
    def add(loss, right, images):
        targets = torch.arange(images) % 3
        scores = F.one_hot(torch.where(torch.arange(images) < right, targets, (targets + 1) % 3), 3).float()
        metrics.add(torch.tensor(loss), scores, targets, images)

    metrics = Metrics(CPU, 408)
    add(1.0, 3, 6)
    add(5.0, 2, 2)
    metrics.add(torch.tensor(9.0), torch.eye(3), torch.arange(3), 0)  # a stand-in
    assert (metrics.loss, metrics.accuracy, metrics.images) == (2.0, 0.625, 8)
    for _ in range(100):  # more than are counted at once
        add(2.0, 3, 4)
    assert (metrics.loss, metrics.accuracy, metrics.images) == (2.0, 305 / 408, 408)


def test_correct_answers_are_counted_for_labels_and_for_mixtures():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert correct(scores, torch.tensor([1, 0, 0])).tolist() == [True, True, False]
    assert correct(scores, torch.tensor([[0.4, 0.6], [0.1, 0.9], [0.0, 1.0]])).tolist() == [True, False, True]


def test_metrics_keep_nothing_that_the_next_batch_overwrites():
    metrics, loss = Metrics(CPU, 6), torch.tensor(1.0, dtype=torch.float64)
    scores, targets = torch.eye(2), torch.arange(2)
    metrics.add(loss, scores, targets, 2)
    loss.fill_(9)
    scores.copy_(scores.flip(0))
    metrics.add(loss, scores, targets, 2)
    targets.copy_(targets.flip(0))
    metrics.add(loss, scores, F.one_hot(targets, 2).float(), 2)  # mixed images after plain ones
    assert (metrics.loss, metrics.accuracy) == (19 / 3, 4 / 6)


def test_metrics_hold_few_batches():
    metrics = Metrics(CPU, 1000)
    kept = [weakref.ref(scores) for scores in _added(metrics, 1000)]
    assert not any(reference() is not None for reference in kept)
    assert len(metrics._uncounted) < 64


def _added(metrics, count):
    for _ in range(count):
        scores = torch.eye(1)
        metrics.add(torch.tensor(1.0), scores, torch.zeros(1, dtype=torch.long), 1)
        yield scores


def test_the_stopwatch_adds_up_and_starts_anew(monkeypatch):
    times = iter([1.0, 1.5, 3.0, 3.25])
    monkeypatch.setattr("fusedopt.training.metrics.perf_counter", lambda: next(times))
    stopwatch = Stopwatch(CPU)
    for _ in range(2):
        with stopwatch:
            pass
    assert stopwatch.seconds() == 0.75
    assert stopwatch.seconds() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_stopwatch_measures_the_device():
    stopwatch = Stopwatch(torch.device("cuda"))
    matrix = torch.rand(4096, 4096, device="cuda")
    with stopwatch:
        matrix @ matrix
    assert stopwatch.seconds() > 0
    assert stopwatch.seconds() == 0
