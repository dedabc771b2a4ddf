"""The recipes: what is trained on, and with which learning rates."""

from dataclasses import replace

import pytest
import torch

from fusedopt.data import make_hands
from fusedopt.examples import recipes
from fusedopt.examples.recipes import RECIPES, Recipe, confusion, run
from fusedopt.models import HandClassifier
from fusedopt.tasks import TASKS

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data():
    return make_hands(60, 12)


def test_recipe_repeats_and_trains_on_what_is_not_held_out(data, monkeypatch):
    seen, rates = [], []

    def spy(model, optimizer, data, **options):
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        seen.append(data)
        return original(model, optimizer, data, **options)

    original = recipes.train
    monkeypatch.setattr(recipes, "train", spy)
    recipe = Recipe("hands", HandClassifier, epochs=2, batch_size=20, max_lr=2e-3, held_out=0.25)
    losses = [[epoch.loss for epoch in run(recipe, data, seed).epochs] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert len(seen[0].train_labels) == 45
    assert torch.equal(seen[0].test_images, data.test_images)
    assert len(rates) == 3 * 2 * 3
    assert max(rates) == pytest.approx(2e-3, rel=0.05)
    assert rates[0] == pytest.approx(2e-3 / 25)
    assert rates[5::6] == [pytest.approx(2e-3 / 25 / 1e4)] * 3  # the cycle is over


def test_confusion_has_a_row_for_each_class():
    truth, predicted = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    assert confusion(truth, predicted, ("cat", "dog")).splitlines() == [
        "       cat  dog",
        "cat      1    1",
        "dog      1    2",
    ]


def test_command_prints_each_seed_and_the_mean(data, monkeypatch, capsys):
    small = Recipe("rps", HandClassifier, epochs=1, batch_size=30, max_lr=1e-3)
    monkeypatch.setitem(RECIPES, "rps", small)
    monkeypatch.setitem(TASKS, "rps", replace(TASKS["rps"], load=lambda data_dir, notify: data))
    recipes.main(["rps", "--seeds", "2", "--optimizer", "torch.adamw"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["seed 0", "seed 1", "mean of 2 seeds"]
    accuracies = [float(line.split()[4]) for line in lines[:2]]
    head, *rows = [line.split() for line in lines[-4:]]
    assert head == ["paper", "rock", "scissors"]
    assert [row[0] for row in rows] == head
    counts = torch.tensor([[int(count) for count in row[1:]] for row in rows])
    assert counts.sum(dim=1).tolist() == (2 * data.test_labels.bincount()).tolist()
    assert 100 * counts.trace().item() / counts.sum().item() == pytest.approx(sum(accuracies) / 2, abs=0.01)
    with pytest.raises(SystemExit):
        recipes.main(["rps", "--seeds", "0"])
    assert "--seeds must be at least 1" in capsys.readouterr().err
