"""What the settings of a training do, each against the same training written out."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_runs import Normed, assert_same_weights, fit, written_out

import fusedopt
from fusedopt.data import Normalize, make_hands
from fusedopt.models import CNN2, HandClassifier
from fusedopt.training import OPTIMIZERS, ExponentialAverage, Settings, make_loss, make_optimizer, seeded, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return make_hands(100, 30)


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


def test_onednn_is_turned_off_for_the_training_alone(data):
    enabled = []

    def loss(scores, targets):
        enabled.append(torch.backends.mkldnn.enabled)
        return F.cross_entropy(scores, targets)

    ours, _ = fit(data, onednn=False, epochs=1, loss_fn=loss)
    assert enabled == [False] * 7 + [True]
    assert torch.backends.mkldnn.enabled
    assert_same_weights(ours, fit(data, epochs=1)[0], rtol=1e-3, atol=1e-5)


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
    dropping = partial(CNN2, n_feature=5, p=0.3)  # differs between training and evaluation
    ours, _ = fit(data, dropping, compile=True)
    assert compiled
    assert_same_weights(ours, fit(data, dropping)[0])


def test_ema_is_an_average_of_every_step(data):
    kept = []
    ours, epochs = fit(data, Normed, ema=0.5, on_epoch=lambda epoch, network: kept.append(network))
    network, optimizer, batches = written_out(data, Normed)
    expected: dict[str, torch.Tensor] = {}
    decays = [0, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, *[0.5] * 6]
    for (images, labels), decay in zip(batches, decays, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if decay else value.clone()
    assert_same_weights(ours, network)
    for name, value in expected.items():
        if name != "norm.num_batches_tracked":
            torch.testing.assert_close(kept[-1].state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert kept[-1].norm.num_batches_tracked == len(batches)
    assert not torch.equal(kept[-1].fc.weight, ours.fc.weight)
    with torch.no_grad():
        scores = kept[-1].eval()(Normalize(data.train_images)(data.test_images))
    assert epochs[-1].test_loss == pytest.approx(F.cross_entropy(scores, data.test_labels).item(), rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ema_is_what_an_optimizer_keeps_by_ema_decay(data, name):
    """Number for number, from the first step through the warm-up, which ends with the 9th of 16 steps."""
    network, kept = seeded(Normed, 0), []
    optimizer = make_optimizer(name, network.parameters(), ema_decay=0.5)
    settings = Settings(ema=0.5, accumulate=2)
    list(
        train(network, optimizer, data, epochs=4, batch_size=16, settings=settings, on_epoch=lambda *x: kept.append(x))
    )
    for p, mean in zip(network.parameters(), kept[-1][1].parameters(), strict=True):
        assert float(optimizer.state[p]["step"]) == 16
        torch.testing.assert_close(optimizer.state[p]["average"], mean.detach(), rtol=1e-6, atol=1e-7)
        with optimizer.averaged_weights():
            torch.testing.assert_close(p.detach(), mean.detach(), rtol=1e-6, atol=1e-7)
    assert not torch.equal(kept[-1][1].fc.weight, network.fc.weight)


def test_the_first_update_of_an_average_copies():
    model = nn.Linear(2, 1)
    average = ExponentialAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3)
    average.update_parameters(model)
    assert torch.equal(average.module.weight, model.weight)
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be a whole number, at least 1, not 0"),
        ({"accumulate": 1.5}, "accumulate must be a whole number, at least 1, not 1.5"),
        ({"schedule": "cosine", "min_lr": -1e-9}, "min_lr must be at least 0 and finite, not -1e-09"),
        ({"schedule": "cosine", "min_lr": math.nan}, "min_lr must be at least 0 and finite, not nan"),
        ({"patience": math.nan}, "patience must be a whole number of epochs, at least 1, not nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0 and finite, not 0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must be above 0 and finite, not nan"),
        ({"amp": "fp8"}, "unknown precision 'fp8'; choose from bf16, fp16"),
        ({"ema": 1.0}, "between 0 and 1, not 1"),
        ({"schedule": "saw"}, "unknown schedule 'saw'; choose from exponential-decay,"),
        ({"min_lr": 0.1}, "needs a schedule"),
        ({"patience": 0}, "a whole number of epochs, at least 1, not 0"),
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
