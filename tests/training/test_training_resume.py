"""A training that is interrupted anywhere goes on as if it had not been, whatever its settings."""

import pytest
import torch
from torch import nn

from fusedopt.data import compose, make_hands
from fusedopt.files import FileError
from fusedopt.models import CNN2
from fusedopt.training import Checkpoint, Settings, make_optimizer, seeded, train

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING = Settings(
    accumulate=3, max_grad_norm=1.0, amp="fp16", channels_last=True, ema=0.9, schedule="one-cycle", patience=3
)
CASES = {
    "plain": Settings(),
    "everything": EVERYTHING,
    **{name: Settings(schedule=name) for name in ("warmup-cosine", "flat-cosine", "triangular", "ramp-exp")},
}


class Kill(BaseException):
    """What no handler expects."""


@pytest.fixture(scope="module")
def data():
    return make_hands(60, 30)


class Run:
    """A training with dropout and augmentation, and what it reported."""

    def __init__(self, data, folder, settings, *, epochs=4, resume=False, kill=None):
        torch.manual_seed(0)
        self.network = seeded(lambda: CNN2(n_feature=5, p=0.3), 0)
        self.optimizer = make_optimizer("torch.sgd", self.network.parameters())
        self.reported, self.kept, self.batches, self.kill = {}, None, 0, kill
        self.epochs = train(
            self.network,
            self.optimizer,
            data,
            epochs=epochs,
            batch_size=16,
            augmentation=compose(["flip", "crop"], 3),
            settings=settings,
            progress=self.watch,
            on_epoch=self.keep,
            checkpoint_dir=folder,
            resume=resume,
        )

    def watch(self, batches, count, metrics):
        for batch in batches:
            if self.kill == self.batches:
                raise Kill
            self.batches += 1
            yield batch

    def keep(self, epoch, network):
        times = ("seconds", "step_seconds", "images_per_second")
        row = {name: value for name, value in epoch.row().items() if name not in times}
        self.reported[epoch.number] = (row, epoch.best)
        if epoch.best:
            self.kept = {name: value.clone() for name, value in network.state_dict().items()}

    def state(self):
        states = [self.network.state_dict(), self.optimizer.state_dict()["state"], self.kept, torch.get_rng_state()]
        return [self.optimizer.param_groups[0]["lr"], states]


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_killed_training_goes_on_bit_for_bit(data, tmp_path, settings):
    straight = Run(data, None, settings)
    list(straight.epochs)
    killed = Run(data, tmp_path, settings, kill=6)  # the second of four batches of the second epoch
    with pytest.raises(Kill):
        list(killed.epochs)
    resumed = Run(data, tmp_path, settings, resume=True)
    list(resumed.epochs)
    assert killed.reported | resumed.reported == straight.reported
    resumed.kept = resumed.kept or killed.kept
    torch.testing.assert_close(resumed.state(), straight.state(), rtol=0, atol=0)


def test_an_epoch_is_reported_before_its_checkpoint(data, tmp_path, monkeypatch):
    """So that a kill between the two reports it twice, rather than never."""
    run = Run(data, tmp_path, Settings())
    original = Checkpoint.save

    def die(self, *, epoch, **rest):
        if epoch == 2:
            raise Kill
        return original(self, epoch=epoch, **rest)

    monkeypatch.setattr(Checkpoint, "save", die)
    with pytest.raises(Kill):
        list(run.epochs)
    assert [*run.reported] == [1, 2]
    monkeypatch.undo()
    again = Run(data, tmp_path, Settings(), resume=True)
    list(again.epochs)
    assert [*again.reported] == [2, 3, 4]
    assert again.reported[2] == run.reported[2]


def test_patience_counts_over_an_interruption(data, tmp_path):
    def still(**options):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 3))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        settings = Settings(patience=3)
        return train(network, optimizer, data, settings=settings, checkpoint_dir=tmp_path, **options)

    assert [epoch.best for epoch in still(epochs=3)] == [True, False, False]
    assert [epoch.best for epoch in still(epochs=9, resume=True)] == [False]
    assert list(still(epochs=9, resume=True)) == []


@pytest.mark.parametrize(
    ("saved", "settings", "epochs", "message"),
    [
        (Settings(), Settings(ema=0.9), 2, "this run has ema, model, optimizer"),
        (Settings(amp="fp16"), Settings(amp="bf16"), 2, "holds model, optimizer, sampler, scaler"),
        (Settings(schedule="cosine"), Settings(schedule="step"), 2, "cosine over 8 steps there, step over 8 here"),
        (Settings(schedule="cosine"), Settings(schedule="cosine"), 3, "cosine over 8 steps there, cosine over 12 here"),
    ],
)
def test_another_training_is_not_continued(data, tmp_path, saved, settings, epochs, message):
    next(Run(data, tmp_path, saved, epochs=2).epochs)
    other = Run.__new__(Run)
    with pytest.raises(FileError, match=message) as caught:
        other.__init__(data, tmp_path, settings, epochs=epochs, resume=True)
    assert "\n" not in str(caught.value)
    fresh = seeded(lambda: CNN2(n_feature=5, p=0.3), 0)
    assert all(map(torch.equal, fresh.parameters(), other.network.parameters()))
