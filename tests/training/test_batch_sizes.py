"""Networks that cannot be trained on a single image: the last batch of an epoch, wherever one is trained."""

import pytest
import torch
from command_line import plain, run, train
from torch import nn
from training_runs import assert_same_weights
from trajectory import record_steps
from typer.testing import CliRunner

from fusedopt import cli
from fusedopt.data import BatchLoader, BatchTransform, Normalize, make_hands
from fusedopt.models import make_model
from fusedopt.training import RunFolder, make_optimizer, seeded
from fusedopt.training import train as training
from fusedopt.training.auto_lr import find_training_lr
from fusedopt.training.batches import batch_sizes
from fusedopt.training.distributed import World
from fusedopt.training.metrics import EarlyStopping

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return make_hands(33, 9)  # two batches of 16, and one image


def features(*norm):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 8), *norm, nn.Linear(8, 3))


def by_name(name):
    return seeded(lambda: make_model(name, channels=3, classes=3, size=28), 0)


NEEDS_TWO = {
    "batch norm": lambda: features(nn.BatchNorm1d(8)),
    "group norm": lambda: features(nn.GroupNorm(8, 8)),
    "lenet-bn": lambda: by_name("lenet-bn"),
    "mlp3": lambda: by_name("mlp3"),
}
TAKES_ONE = {
    "plain": features,
    "layer norm": lambda: features(nn.LayerNorm(8)),
    "lenet": lambda: by_name("lenet"),
    "images": lambda: nn.Sequential(nn.BatchNorm2d(3), features()),
}


@pytest.mark.parametrize("name", [*NEEDS_TWO, *TAKES_ONE])
def test_a_last_image_is_joined_where_it_has_to_be(data, name):
    model = {**NEEDS_TWO, **TAKES_ONE}[name]()
    model[0].eval() if isinstance(model, nn.Sequential) else None
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert batch_sizes(model, data, 16) == ([16, 17] if name in NEEDS_TWO else [16, 16, 1])
    assert batch_sizes(model, data, 31) == [31, 2]
    assert batch_sizes(model, data, 64) == [33]
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_each_process_needs_two(data):
    model, plain_one = NEEDS_TWO["batch norm"](), TAKES_ONE["plain"]()
    assert batch_sizes(model, data, 30, world=World(1, 2)) == [33]  # three images, shared by two
    assert batch_sizes(plain_one, data, 30, world=World(1, 2)) == [30, 3]
    assert batch_sizes(model, data, 28, world=World(1, 2)) == [28, 5]
    assert World(1, 2).share_sizes([28, 5, 1]) == [14, 2, 1]
    with pytest.raises(ValueError, match=r"batches of 2 images, one for each of 2 processes: .* at least 4"):
        batch_sizes(model, data, 2, world=World(0, 2))


def test_what_cannot_be_joined_is_refused():
    model = NEEDS_TWO["batch norm"]()
    with pytest.raises(ValueError, match=r"Sequential cannot be trained on batches of 1 image: .* at least 2"):
        batch_sizes(model, make_hands(9, 3), 1)
    with pytest.raises(ValueError, match="cannot be trained on the 1 training image that hands holds"):
        batch_sizes(model, make_hands(1, 3), 8)
    assert batch_sizes(TAKES_ONE["images"](), make_hands(3, 3), 1) == [1, 1, 1]
    with pytest.raises(ValueError, match="at least 1, not 0"):
        batch_sizes(model, make_hands(3, 3), 0)


@pytest.mark.parametrize("resident_bytes", [2**30, 0])
def test_a_loader_takes_sizes(data, resident_bytes, monkeypatch):
    monkeypatch.setattr("fusedopt.data.loader._PART_BYTES", 28 * 28 * 3 * 20)
    transform = BatchTransform(Normalize(data.train_images))
    images = data.train_images, data.train_labels
    loader = BatchLoader(images, 8, transform, resident_bytes=resident_bytes, workers=0)
    order = torch.randperm(33)
    whole = torch.cat([batch for batch, _ in loader.batches(order)])
    batches = list(loader.batches(order, 0, [8, 8, 8, 9]))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 9]
    torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), whole, rtol=0, atol=0)
    assert [len(labels) for _, labels in loader.batches(order)] == [8, 8, 8, 8, 1]


def test_training_is_on_the_joined_batch(data):
    ours, reference = (seeded(NEEDS_TWO["batch norm"], 0) for _ in range(2))
    (epoch,) = training(ours, make_optimizer("torch.sgd", ours.parameters()), data, epochs=1, batch_size=16)
    assert epoch.number == 1
    normalize, optimizer = Normalize(data.train_images), make_optimizer("torch.sgd", reference.parameters())
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    for index in order.split([16, 17]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(normalize(data.train_images[index])), data.train_labels[index]).backward()
        optimizer.step()
    assert_same_weights(ours, reference, rtol=1e-4, atol=1e-6)


def test_every_other_entry_joins_it_too(data):
    model = by_name("mlp3")
    optimizer = make_optimizer("torch.sgd", model.parameters())
    assert len(find_training_lr(model, optimizer, data, batch_size=16).lrs) > 10
    assert len(record_steps(model, optimizer, data, steps=4, batch_size=16).losses) == 4


@pytest.mark.parametrize("command", [["train", "--no-report", "--epochs", 1], ["find-lr", "--iterations", 25]])
def test_commands_join_it(fashion, command):
    name, *options = command
    run(name, "fashion-mnist", "--data-dir", fashion, "--model", "mlp3", "--batch-size", 21, *options)  # 19 * 21 + 1


@pytest.mark.parametrize("command", ["train", "train auto", "find-lr", "tune"])
def test_commands_refuse_batches_of_one_at_the_start(fashion, command):
    options = {
        "train": ["--batch-size", 1, "--out", "run"],
        "train auto": ["--batch-size", 1, "--lr", "auto", "--out", "run"],
        "find-lr": ["--batch-size", 1],
        "tune": ["--space", "batch-size=1..16", "--out", "run"],
    }[command]
    before = sorted(fashion.iterdir())
    arguments = ("fashion-mnist", "--data-dir", fashion, "--model", "mlp3", *options)
    error = plain(run(command.split()[0], *arguments, code=2).stderr)
    assert "cannot be trained on batches of 1 image: it normalises over a batch" in error
    assert sorted(fashion.iterdir()) == before


def test_a_run_that_breaks_off_in_its_first_epoch_is_not_in_the_way(fashion, monkeypatch):
    def broken(self, metric):
        raise ValueError("of the network's own")

    def fail(*options):
        arguments = ("train", "fashion-mnist", "--data-dir", fashion, "--no-report", "--out", "run", *options)
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert str(result.exception) == "of the network's own"

    with monkeypatch.context() as patch:
        patch.setattr(EarlyStopping, "update", broken)
        fail()
        assert not (fashion / "run").exists()
        (fashion / "run").mkdir()
        (fashion / "run" / "notes.txt").write_text("mine")
        fail()
        assert [path.name for path in (fashion / "run").iterdir()] == ["notes.txt"]
    train(fashion, "--epochs", 1, "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(EarlyStopping, "update", broken)
        fail("--epochs", 2, "--resume")
    assert len(RunFolder.open(fashion / "run").rows) == 1
