"""Schedules over a training, and the learning rate that is found before it."""

import math

import pytest
import torch
from torch import nn
from training_runs import assert_same_weights, fit

from fusedopt.data import make_hands
from fusedopt.models import CNN2, HandClassifier
from fusedopt.schedulers.gallery import GALLERY
from fusedopt.schedulers.named import Schedule
from fusedopt.schedulers.simulate import simulate
from fusedopt.training import Settings, make_optimizer, seeded, train
from fusedopt.training.auto_lr import find_training_lr

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return make_hands(100, 30)


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop", "adagrad", "torch.sgd"])
@pytest.mark.parametrize("name", GALLERY)
def test_schedules_are_followed_step_by_step(data, name, optimizer):
    network = nn.Linear(2, 1)
    chosen = make_optimizer(optimizer, network.parameters(), lr=0.01)
    other = make_optimizer(optimizer, [nn.Parameter(torch.ones(1))], lr=0.01)
    expected = simulate(GALLERY[name](other, 9, 1e-3, 0.01), 9)
    schedule = Schedule(name, chosen, 9)
    rates = []
    for _ in range(9):
        rates.append(float(chosen.param_groups[0]["lr"]))
        network(torch.ones(1, 2)).sum().backward()
        chosen.step()
        schedule.advance()
    assert rates == expected.lr[:, 0].tolist()
    assert chosen.param_groups[0]["lr"] == rates[-1]  # there is no step after the last
    if optimizer in ("rmsprop", "adagrad"):
        assert not expected.changes_momentum


def test_the_schedule_goes_over_all_steps_of_the_training(data):
    rates = []
    network = seeded(HandClassifier, 0)
    chosen = make_optimizer("torch.sgd", network.parameters(), lr=0.04)
    chosen.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    settings = Settings(schedule="cosine", min_lr=0.01, accumulate=3)
    epochs = list(train(network, chosen, data, epochs=2, batch_size=16, settings=settings))  # 7 batches: 3 steps
    assert rates == pytest.approx([0.025 + 0.015 * math.cos(math.pi * step / 6) for step in range(6)])
    assert [epoch.lr for epoch in epochs] == rates[::3]


@pytest.mark.parametrize(
    ("lr", "options", "message"),
    [
        (0.0, {"schedule": "cosine"}, "must be above 0"),
        (0.01, {"schedule": "cosine", "min_lr": 0.1}, "at most the highest, 0.01"),
        (0.01, {"schedule": "warmup-linear", "min_lr": 0.0}, "lowest learning rate, 0, must be above 0 and at most"),
        (0.01, {"schedule": "exponential", "min_lr": 0.0}, "lowest learning rate, 0, must be above 0 and at most"),
    ],
)
def test_schedules_that_cannot_be_are_refused(data, lr, options, message):
    with pytest.raises(ValueError, match=message):
        fit(data, lr=lr, **options)


def test_automatic_lr_leaves_no_trace(data):
    def prepare():
        torch.manual_seed(3)
        network = seeded(lambda: CNN2(n_feature=5, p=0.3), 0)
        return network, make_optimizer("adamw", network.parameters())

    network, optimizer = prepare()
    options = {"batch_size": 16, "settings": Settings(amp="bf16", accumulate=2)}
    assert len(find_training_lr(network, optimizer, data, num_iter=40, **options).lrs) > 20
    found = list(train(network, optimizer, data, epochs=2, **options))
    other, optimizer = prepare()
    given = list(train(other, optimizer, data, epochs=2, **options))
    assert [e.train_loss for e in found] == [e.train_loss for e in given]
    assert_same_weights(network, other)


def test_automatic_lr_trains_as_the_training_does(data, monkeypatch):
    seen = []
    network = seeded(HandClassifier, 0)
    network.register_forward_hook(lambda module, images, scores: seen.append((images[0].clone(), scores.dtype)))
    optimizer = make_optimizer("torch.sgd", network.parameters())
    settings = Settings(amp="bf16", accumulate=7)
    find_training_lr(network, optimizer, data, batch_size=16, settings=settings, num_iter=3)
    assert [len(images) for images, _ in seen] == [16, 16, 16, 16, 16, 16, 4] * 3
    assert len({images.sum().item() for images, _ in seen[::7]}) == 3  # another order each time
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
