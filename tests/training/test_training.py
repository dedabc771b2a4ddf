"""The training loop, and optimizers by name."""

import dataclasses
import math

import pytest
import torch
from trajectory import record_steps

import fusedopt
from fusedopt import optim
from fusedopt.data import make_hands
from fusedopt.data.images import ImageData
from fusedopt.files import FileError
from fusedopt.models import GarmentClassifier, HandClassifier
from fusedopt.training import OPTIMIZERS, Settings, batches, make_optimizer, optimizer_names, predict, seeded, train
from fusedopt.training.optimizers import OptimizerEntry, name_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return make_hands(100, 30)


def record(data, name, *, lr=None, **options):
    model = seeded(HandClassifier, 0)
    return record_steps(model, make_optimizer(name, model.parameters(), lr=lr), data, batch_size=16, **options)


class Spy(torch.nn.Module):
    """A linear model that keeps the images it saw."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 28 * 28, 3)
        self.seen = []

    def forward(self, images):
        if self.training:
            self.seen.append(images.clone())
        return self.linear(images.flatten(1))


@pytest.mark.parametrize("seed", [0, 1])
def test_optimizers_see_identical_batches(data, seed):
    spies = {}
    for name in ("adamw", "torch.sgd"):
        spy = seeded(Spy, 0)
        list(train(spy, make_optimizer(name, spy.parameters()), data, epochs=2, batch_size=16, seed=seed))
        spies[name] = torch.cat(spy.seen)
    assert spies["adamw"].shape == (200, 3, 28, 28)
    assert torch.equal(spies["adamw"], spies["torch.sgd"])
    assert not torch.equal(spies["adamw"][:100], spies["adamw"][100:])  # shuffled anew in the second epoch


def test_other_seed_other_order(data):
    first, second = record(data, "torch.sgd", steps=3, seed=0), record(data, "torch.sgd", steps=3, seed=1)
    assert first.losses[0] != second.losses[0]


def test_seeded_weights_repeat_and_leave_the_global_generator(data):
    before = torch.random.get_rng_state()
    first, second, other = (seeded(GarmentClassifier, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.fc1.weight, second.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


def test_garment_classifier_is_the_tutorials():
    shapes = {name: tuple(p.shape) for name, p in GarmentClassifier().named_parameters() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (6, 1, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 256),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    }
    assert GarmentClassifier()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 10), (10, 99), (1, 1)])
def test_batches_hold_every_image_once(count, size):
    images, labels = torch.arange(count)[:, None], torch.arange(count)
    for generator in (None, torch.Generator().manual_seed(0)):
        parts = list(batches(images, labels, size, generator))
        assert len(parts) == -(-count // size)
        assert all(torch.equal(i[:, 0], n) for i, n in parts)
        order = torch.cat([n for _, n in parts])
        assert torch.equal(order.sort().values, labels)
        assert generator is not None or torch.equal(order, labels)


def test_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        list(batches(torch.zeros(3), torch.zeros(3), 0))


def test_epoch_measures_the_step(data):
    model = seeded(HandClassifier, 0)
    optimizer = make_optimizer("torch.adamw", model.parameters())
    (epoch,) = train(model, optimizer, data, epochs=1)
    assert 0 < epoch.step_seconds < epoch.seconds
    assert 0 <= epoch.accuracy <= 1
    assert not model.training


def test_epoch_loss_is_the_mean_over_the_images(data):
    # 100 images in batches of 64 and 36: a mean of the batches' means would weigh them wrongly. With lr 0 the loss can
    # be computed afterwards.
    model = seeded(HandClassifier, 0)
    (epoch,) = train(model, torch.optim.SGD(model.parameters(), lr=0.0), data, epochs=1, batch_size=64)
    whole = record_steps(model, torch.optim.SGD(model.parameters(), lr=0.0), data, steps=1, batch_size=100)
    assert epoch.loss == pytest.approx(whole.losses[0], rel=1e-6)


def test_there_is_no_accuracy_without_test_images(data):
    none = dataclasses.replace(data, test_images=data.test_images[:0], test_labels=data.test_labels[:0])
    model = seeded(HandClassifier, 0)
    (epoch,) = train(model, make_optimizer("adamw", model.parameters()), none, epochs=1)
    assert math.isnan(epoch.test_accuracy)
    assert math.isnan(epoch.test_loss)
    assert not epoch.best
    assert 0 < epoch.train_accuracy <= 1


def test_progress_gets_every_batch_and_their_number(data):
    seen = []

    def progress(epoch, total, metrics):
        for batch in epoch:
            seen.append((total, len(batch[1])))
            yield batch

    model = seeded(HandClassifier, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    list(train(model, optimizer, data, epochs=1, batch_size=40, progress=progress))
    assert seen == [(3, 40), (3, 40), (3, 20)]


def test_record_steps_runs_over_epochs_and_keeps_gradients(data):
    trajectory = record(data, "torch.sgd", steps=10, keep_gradients=True)  # 7 batches make an epoch
    assert len(trajectory.losses) == len(trajectory.gradients) == 10
    shapes = [p.shape for p in HandClassifier().parameters()]
    assert [p.shape for p in trajectory.parameters] == [g.shape for g in trajectory.gradients[0]] == shapes
    assert not torch.equal(trajectory.gradients[0][0], trajectory.gradients[1][0])
    assert record(data, "torch.sgd", steps=2).gradients == []


def test_gradients_do_not_pile_up(data):
    model = seeded(HandClassifier, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    first, second = record_steps(model, optimizer, data, steps=2, batch_size=100, keep_gradients=True).gradients
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)  # the same images, in another order


def test_recorded_gradients_are_those_before_the_step(data):
    class Wiping(torch.optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad.zero_()

    model = seeded(HandClassifier, 0)
    ((gradient, *_),) = record_steps(model, Wiping(model.parameters()), data, steps=1, keep_gradients=True).gradients
    assert gradient.abs().sum() > 0


def test_record_steps_needs_images():
    empty = ImageData("none", ("a",), *[torch.zeros(0, 3, 28, 28, dtype=torch.uint8), torch.zeros(0).long()] * 2)
    with pytest.raises(ValueError, match="none holds no training images"):
        record(empty, "torch.sgd", steps=1)


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if entry.in_torch])
def test_fused_training_follows_native_training(data, name):
    # Few steps: with 20, PyTorch's own Adagrad departs this far from itself once a weight differs in its last bit.
    steps = 12 if name == "radam" else 8  # its first five are those of SGD, which moves little
    ours, native, still = (
        record(data, n, steps=steps, lr=lr, keep_gradients=True)
        for n, lr in ((name, None), (f"torch.{name}", None), (f"torch.{name}", 0.0))
    )
    tolerance = 1e-5
    torch.testing.assert_close(ours.losses, native.losses, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.gradients[0], native.gradients[0], rtol=1e-5, atol=1e-7)
    # Training changed the losses by far more than the tolerance, so an optimizer that does nothing would be noticed.
    assert max(abs(a - b) for a, b in zip(native.losses, still.losses, strict=True)) > 100 * tolerance


def test_predict_covers_more_than_one_chunk(data):
    model = seeded(HandClassifier, 0)
    images = data.train_images.repeat(25, 1, 1, 1)
    predicted = predict(model, images, lambda batch: batch.float())
    assert predicted.shape == (2500,)
    assert torch.equal(predicted[:100], predicted[2400:])


def test_names_find_the_classes():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    for name in optimizer_names():
        module, short = (torch.optim, name[6:]) if name.startswith("torch.") else (fusedopt, name)
        assert type(make_optimizer(name, weights)) is getattr(module, OPTIMIZERS[short].class_name)
    assert "torch.lamb" not in optimizer_names()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_at_its_default_learning_rate(name):
    data, model = make_hands(300, 1), seeded(HandClassifier, 0)
    epochs, batch_size = (12, 300) if name == "rprop" else (4, 10)  # signs want gradients without noise
    optimizer, settings = make_optimizer(name, model.parameters()), Settings(schedule="cosine")
    first, *_, last = train(model, optimizer, data, epochs=epochs, batch_size=batch_size, settings=settings)
    better = f"enter {name} in OPTIMIZERS of fusedopt/training/optimizers.py with a learning rate that trains this"
    assert last.train_loss < first.train_loss - 0.1, better


def test_options_reach_the_optimizer():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    group = make_optimizer("torch.sgd", weights, lr=0.5, momentum=0.25, weight_decay=0.125, nesterov=True).param_groups[
        0
    ]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.5, 0.25, 0.125, True)
    default = make_optimizer("sgd", weights).param_groups[0]
    assert (default["lr"], default["momentum"]) == (OPTIMIZERS["sgd"].lr, 0.9)


def test_every_optimizer_has_a_name():
    known = [getattr(optim, name) for name in optim.__all__]
    ours = {cls for cls in known if isinstance(cls, type) and issubclass(cls, optim.FusedStep)}
    assert {getattr(optim, entry.class_name) for entry in OPTIMIZERS.values()} == ours
    assert len(OPTIMIZERS) == len(ours)
    assert list(OPTIMIZERS) == [name_of(entry.class_name) for entry in OPTIMIZERS.values()]


def test_a_class_that_was_not_tuned_has_its_own_defaults():
    assert OptimizerEntry.untuned(fusedopt.RMSprop) == OptimizerEntry("RMSprop", lr=0.01, momentum=0)
    assert OptimizerEntry.untuned(fusedopt.Lion) == OptimizerEntry("Lion", lr=1e-4)


@pytest.mark.parametrize("name", ["lions", "torch.lamb", "torch.", "", "AdamW"])
def test_unknown_optimizer_lists_the_names(name):
    with pytest.raises(ValueError, match=r"choose one of sgd, .*lamb, .*torch.sgd") as error:
        make_optimizer(name, [])
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("name", optimizer_names())
def test_what_an_optimizer_does_not_take_is_refused_and_the_rest_arrives(name):
    weights = [torch.nn.Parameter(torch.zeros(1))]
    group = make_optimizer(name, weights).param_groups[0]
    for option in ("momentum", "weight_decay"):
        if option in group:
            assert make_optimizer(name, weights, **{option: 0.25}).param_groups[0][option] == 0.25
        else:
            with pytest.raises(ValueError, match=rf"^{name} takes no {option.replace('_', ' ')}; leave it out"):
                make_optimizer(name, weights, **{option: 0.25})
    entry = OPTIMIZERS[name.rpartition(".")[2]]
    assert (group["lr"], group.get("momentum")) == (entry.lr, entry.momentum)


@pytest.mark.parametrize("where", ["after an epoch", "within an epoch"])
def test_training_resumes_bit_for_bit(data, tmp_path, where):
    def run(**options):
        model = seeded(HandClassifier, 0)
        optimizer = make_optimizer("adamw", model.parameters())
        return model, train(model, optimizer, data, epochs=4, batch_size=16, **options)

    class Interruption(Exception):
        pass

    calls = 0

    def interrupt(epoch, total, metrics):
        nonlocal calls
        calls += 1
        for number, batch in enumerate(epoch):
            if calls == 3 and where == "within an epoch" and number == 4:
                raise Interruption
            yield batch

    straight, epochs = run()
    expected = [(e.number, e.loss, e.accuracy) for e in epochs]
    _, epochs = run(checkpoint_dir=tmp_path, progress=interrupt)
    next(epochs), next(epochs)
    if where == "within an epoch":
        with pytest.raises(Interruption):
            next(epochs)
    resumed, epochs = run(checkpoint_dir=tmp_path, resume=True)
    assert [(e.number, e.loss, e.accuracy) for e in epochs] == expected[2:]
    assert all(map(torch.equal, resumed.parameters(), straight.parameters()))
    assert list(run(checkpoint_dir=tmp_path, resume=True)[1]) == []
    with pytest.raises(FileError, match="an earlier run"):
        next(run(checkpoint_dir=tmp_path)[1])
