"""What the settings of a training do, each against the same training written out."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fusedopt
from fusedopt.data import Normalize, make_hands
from fusedopt.models import CNN2, HandClassifier
from fusedopt.schedulers.gallery import GALLERY
from fusedopt.schedulers.simulate import simulate
from fusedopt.training import ExponentialAverage, Settings, make_loss, make_optimizer, seeded, train
from fusedopt.training.auto_lr import find_training_lr
from fusedopt.training.batches import parts
from fusedopt.training.distributed import ALONE, World
from fusedopt.training.precision import Precision
from fusedopt.training.schedule import Schedule
from fusedopt.training.step import Step

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return make_hands(100, 30)


class Normed(nn.Module):
    """A network with buffers of both kinds: running statistics, and how many batches they are of."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.Linear(4 * 6 * 6, 3)

    def forward(self, images):
        return self.fc(F.relu(self.norm(self.conv(images))).flatten(1))


def fit(data, model=HandClassifier, optimizer="torch.sgd", lr=None, epochs=2, batch_size=16, **options):
    """Trains with settings; returns the network and the epochs."""
    arguments = {name: options.pop(name) for name in ("loss_fn", "on_epoch", "augmentation") if name in options}
    network = seeded(model, 0)
    chosen = make_optimizer(optimizer, network.parameters(), lr=lr)
    settings = Settings(**options)
    torch.manual_seed(0)
    return network, list(
        train(network, chosen, data, epochs=epochs, batch_size=batch_size, settings=settings, **arguments)
    )


def written_out(data, model=HandClassifier, optimizer="torch.sgd", lr=None, epochs=2, batch_size=16):
    """The same batches as `train` has, for a training that is written out."""
    network = seeded(model, 0)
    chosen = make_optimizer(optimizer, network.parameters(), lr=lr)
    generator, normalize = torch.Generator().manual_seed(0), Normalize(data.train_images)
    batches = []
    for _ in range(epochs):
        order = torch.randperm(len(data.train_labels), generator=generator)
        batches += [(normalize(data.train_images[i]), data.train_labels[i]) for i in order.split(batch_size)]
    torch.manual_seed(0)
    return network.train(), chosen, batches


def assert_same_weights(ours, theirs, rtol=0.0, atol=0.0):
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("count", "batch_size", "accumulate"), [(100, 16, 3), (7, 3, 2), (5, 9, 4), (8, 2, 4)])
def test_every_image_weighs_the_same_in_its_step(count, batch_size, accumulate):
    plan = list(parts(count, batch_size, accumulate, ALONE))
    assert sum(part.images for part in plan) == count
    assert plan[0].first
    assert plan[-1].last
    assert sum(part.first for part in plan) == sum(part.last for part in plan) == math.ceil(len(plan) / accumulate)
    step = []
    for part in plan:
        assert part.first == (not step)
        step.append(part)
        if part.last:
            assert len({part.weight / part.images for part in step}) == 1
            assert sum(part.weight for part in step) == pytest.approx(1)
            step = []


def test_processes_share_every_batch():
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    worlds = [World(rank, 4) for rank in range(4)]
    shares = [world.share(order, 8).split(2) for world in worlds]  # batches of 8, 8 and 5
    plans = [list(parts(21, 8, 1, world)) for world in worlds]
    for number, batch in enumerate(order.split(8)):
        taken = [share[number][: plan[number].images] for share, plan in zip(shares, plans, strict=True)]
        assert torch.equal(torch.cat(taken), batch)
        assert sum(plan[number].weight for plan in plans) == pytest.approx(4)  # their mean is 1
    (last,) = list(parts(17, 8, 1, World(3, 4)))[-1:]
    assert (last.images, last.weight) == (0, 0)
    assert len(World(3, 4).share(order[:17], 8)) == 5  # a stand-in, which does not count


def test_accumulation_is_one_step_on_all_images_of_its_batches(data):
    # 100 images in batches of 10: steps on 40, 40 and 20 images, which are batches of 40 in the same order.
    ours, epochs = fit(data, batch_size=10, accumulate=4)
    whole, expected = fit(data, batch_size=40)
    assert_same_weights(ours, whole, rtol=1e-4, atol=1e-6)
    assert [e.train_loss for e in epochs] == pytest.approx([e.train_loss for e in expected], rel=1e-5)
    apart, _ = fit(data, batch_size=10)
    assert (apart.fc3.weight - whole.fc3.weight).abs().max() > 1e-3


def test_the_last_group_weighs_its_images(data):
    # Batches of 30, 30, 30 and 10: the second step has the mean over 40 images, not the mean of two batches' means.
    ours, _ = fit(data, batch_size=30, accumulate=2, epochs=1, lr=0.1)
    network, optimizer, batches = written_out(data, batch_size=30, epochs=1, lr=0.1)
    for pair in (batches[:2], batches[2:]):
        images, labels = (torch.cat(tensors) for tensors in zip(*pair, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert_same_weights(ours, network, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["torch.sgd", "adamw"])
def test_clipping_is_that_of_torch(data, optimizer):
    ours, _ = fit(data, optimizer=optimizer, max_grad_norm=0.05, epochs=1)
    network, chosen, batches = written_out(data, optimizer=optimizer, epochs=1)
    for images, labels in batches:
        chosen.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        assert nn.utils.clip_grad_norm_(network.parameters(), 0.05) > 0.05
        chosen.step()
    assert_same_weights(ours, network, rtol=1e-5, atol=1e-6)


def test_fp16_unscales_before_it_clips(data, monkeypatch):
    norms = []
    original = fusedopt.training.step.clip_grad_norm_
    monkeypatch.setattr("fusedopt.training.step.clip_grad_norm_", lambda *a: norms.append(original(*a)))
    fit(data, amp="fp16", max_grad_norm=1.0, epochs=1)
    assert max(norms) < 100  # the scale is 65,536


def test_bf16_is_autocast_forwards_and_float32_in_the_loss(data):
    ours, epochs = fit(data, amp="bf16", epochs=1)
    network, optimizer, batches = written_out(data, epochs=1)
    for images, labels in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(images)
        assert scores.dtype is torch.bfloat16
        F.cross_entropy(scores.float(), labels).backward()
        optimizer.step()
    assert_same_weights(ours, network)
    assert ours.fc1.weight.dtype is torch.float32
    assert epochs[-1].train_loss != fit(data, epochs=1)[1][-1].train_loss


@pytest.mark.parametrize("optimizer", ["torch.sgd", "sgd"])
def test_fp16_scales_the_loss_and_leaves_out_what_overflows(data, optimizer):
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scores):
            return scores.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    calls = 0

    def loss(scores, targets):
        nonlocal calls
        calls += scores.requires_grad
        return F.cross_entropy(Overflow.apply(scores) if calls == 2 and scores.requires_grad else scores, targets)

    weights = []
    network = seeded(HandClassifier, 0)
    chosen = make_optimizer(optimizer, network.parameters(), momentum=0.0)

    def watch(batches, count, metrics):
        for batch in batches:
            weights.append(network.fc3.weight.detach().clone())
            yield batch

    settings = Settings(amp="fp16", schedule="cosine")
    list(train(network, chosen, data, epochs=1, batch_size=25, loss_fn=loss, settings=settings, progress=watch))
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [True, False, True]


def test_a_first_step_that_overflows_warns_of_nothing(data):
    fit(data, amp="fp16", schedule="cosine", loss_fn=lambda scores, targets: F.cross_entropy(scores * 1e6, targets))


def test_channels_last_changes_the_layout_only(data):
    layouts = set()

    class Watching(HandClassifier):
        def forward(self, images):
            layouts.add((self.training, images.is_contiguous(memory_format=torch.channels_last)))
            return super().forward(images)

    ours, _ = fit(data, Watching, channels_last=True, epochs=1)
    plain, _ = fit(data, epochs=1)
    assert ours.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert (True, True) in layouts
    assert (True, False) not in layouts
    assert_same_weights(ours, plain, rtol=1e-4, atol=1e-6)


def test_compiling_goes_through_the_compiler_and_changes_nothing(data, monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiler(model, backend=backend))
    torch._dynamo.reset()
    ours, _ = fit(data, compile=True, epochs=1)
    assert compiled
    assert_same_weights(ours, fit(data, epochs=1)[0])


def test_ema_is_torchs_average_of_every_step(data):
    kept = []
    ours, epochs = fit(data, Normed, ema=0.8, on_epoch=lambda epoch, network: kept.append(network))
    network, optimizer, batches = written_out(data, Normed)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    running = None
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        average.update_parameters(network)
        mean = network.norm.running_mean
        running = mean.clone() if running is None else 0.8 * running + 0.2 * mean
    assert_same_weights(ours, network)
    for name, value in average.module.named_parameters():
        torch.testing.assert_close(kept[-1].get_parameter(name), value, rtol=0, atol=0)
    torch.testing.assert_close(kept[-1].norm.running_mean, running, rtol=1e-5, atol=1e-6)
    assert kept[-1].norm.num_batches_tracked == len(batches)
    assert not torch.equal(kept[-1].fc.weight, ours.fc.weight)
    with torch.no_grad():
        scores = kept[-1].eval()(Normalize(data.train_images)(data.test_images))
    assert epochs[-1].test_loss == pytest.approx(F.cross_entropy(scores, data.test_labels).item(), rel=1e-6)


def test_the_first_update_of_an_average_copies():
    model = nn.Linear(2, 1)
    average = ExponentialAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3)
    average.update_parameters(model)
    assert torch.equal(average.module.weight, model.weight)
    assert not any(p.requires_grad for p in average.parameters())


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
    ],
)
def test_schedules_that_cannot_be_are_refused(data, lr, options, message):
    with pytest.raises(ValueError, match=message):
        fit(data, lr=lr, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0 and finite, not 0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must be above 0 and finite, not nan"),
        ({"amp": "fp8"}, "unknown precision 'fp8'; choose from bf16, fp16"),
        ({"ema": 1.0}, "between 0 and 1, not 1"),
        ({"schedule": "saw"}, "unknown schedule 'saw'; choose from exponential-decay,"),
        ({"min_lr": 0.1}, "needs a schedule"),
        ({"patience": 0}, "at least 1 epoch, not 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_patience_counts_epochs_without_a_better_one(data):
    reported = []
    # Learning rate 0: the first epoch is the best, and none is better.
    _, epochs = fit(data, lr=0.0, epochs=9, patience=2, on_epoch=lambda epoch, _: reported.append(epoch))
    assert [epoch.best for epoch in epochs] == [True, False, False]
    assert reported == epochs


def test_the_best_network_can_be_kept(data):
    kept = {}

    def keep(epoch, network):
        if epoch.best:
            kept.update({"number": epoch.number, "state": {k: v.clone() for k, v in network.state_dict().items()}})

    network, epochs = fit(data, lr=0.05, epochs=4, on_epoch=keep)
    best = max(epochs, key=lambda epoch: epoch.test_accuracy)
    assert kept["number"] == best.number
    network.load_state_dict(kept["state"])
    scores = network(Normalize(data.train_images)(data.test_images))
    assert (scores.argmax(1) == data.test_labels).float().mean() == pytest.approx(best.test_accuracy)


def test_an_epoch_is_measured(data):
    # With learning rate 0 and no dropout, what was seen during the epoch can be computed after it.
    network, (epoch,) = fit(data, lr=0.0, epochs=1, loss_fn=make_loss("cross-entropy", label_smoothing=0.1))
    normalize = Normalize(data.train_images)
    for images, labels, loss, share in (
        (data.train_images, data.train_labels, epoch.train_loss, epoch.train_accuracy),
        (data.test_images, data.test_labels, epoch.test_loss, epoch.test_accuracy),
    ):
        scores = network(normalize(images)).detach()
        assert loss == pytest.approx(F.cross_entropy(scores, labels, label_smoothing=0.1).item(), rel=1e-5)
        assert share == pytest.approx((scores.argmax(1) == labels).float().mean().item())
    assert epoch.lr == 0
    assert epoch.images_per_second == pytest.approx(100 / epoch.seconds)
    assert 0 < epoch.step_seconds < epoch.seconds
    assert epoch.row()["epoch"] == 1
    assert epoch.row()["train_accuracy"] == epoch.train_accuracy


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
    network.register_forward_hook(lambda module, images, scores: seen.append((images[0].shape, scores.dtype)))
    optimizer = make_optimizer("torch.sgd", network.parameters())
    settings = Settings(amp="bf16", accumulate=7)
    find_training_lr(network, optimizer, data, batch_size=16, settings=settings, num_iter=3)
    assert [shape[0] for shape, _ in seen] == [16, 16, 16, 16, 16, 16, 4] * 3
    assert {dtype for _, dtype in seen} == {torch.bfloat16}


def test_a_step_leaves_gradients_alone_until_the_next_group(data):
    network = nn.Linear(1, 1, bias=False)
    step = Step(
        network,
        torch.optim.SGD(network.parameters(), lr=1.0),
        lambda s, t: s.sum(),
        Precision(None, torch.device("cpu")),
    )
    for part in parts(4, 1, 2, ALONE):
        before = network.weight.item()
        step(torch.ones(1, 1), torch.zeros(1, dtype=torch.long), part)
        assert network.weight.item() == before - (1.0 if part.last else 0.0)
