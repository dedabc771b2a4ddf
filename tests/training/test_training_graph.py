"""A whole step as a CUDA graph: what it refuses, what it replays, and on a GPU that it trains the same."""

import math

import gpu
import pytest
import torch
from torch import nn

import fusedopt
from fusedopt.data import compose, make_hands
from fusedopt.models import HandClassifier
from fusedopt.schedulers.named import Schedule
from fusedopt.training import Settings, make_optimizer, seeded, train
from fusedopt.training import graph as graphs
from fusedopt.training.batches import parts
from fusedopt.training.compute import Precision
from fusedopt.training.distributed import ALONE, World
from fusedopt.training.graph import GraphedStep, check_capture
from fusedopt.training.step import Step

pytestmark = pytest.mark.usefixtures("one_thread")
CUDA = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not gpu.REAL, reason="there is no CUDA device")


@pytest.fixture(scope="module")
def data():
    return make_hands(100, 30)


def optimizer(**options):
    return fusedopt.AdamW([nn.Parameter(torch.zeros(2))], **options)


@pytest.mark.parametrize(
    ("settings", "device", "capturable", "world", "message"),
    [
        ({}, torch.device("cpu"), True, ALONE, "runs on a GPU, not on cpu"),
        ({}, CUDA, False, ALONE, "needs an optimizer made with capturable=True"),
        ({"accumulate": 2}, CUDA, True, ALONE, "takes one batch per step"),
        ({"amp": "fp16"}, CUDA, True, ALONE, "has no gradient scale: take bf16"),
        ({"compile": True}, CUDA, True, ALONE, "and torch.compile: choose one"),
        ({}, CUDA, True, World(0, 2), "trains in one process"),
    ],
)
def test_what_cannot_be_captured_is_refused(settings, device, capturable, world, message):
    with pytest.raises(ValueError, match=f"^a CUDA graph {message}"):
        check_capture(Settings(**settings), device, optimizer(capturable=capturable), world)
    check_capture(Settings(amp="bf16", ema=0.9, schedule="cosine"), CUDA, optimizer(capturable=True), ALONE)


def test_hooks_would_not_be_replayed():
    hooked = optimizer(capturable=True)
    hooked.register_step_post_hook(lambda *_: None)
    with pytest.raises(ValueError, match="runs no hooks of the optimizer: remove them"):
        check_capture(Settings(), CUDA, hooked, ALONE)


def test_training_refuses_before_it_begins(data):
    network = seeded(HandClassifier, 0)
    with pytest.raises(ValueError, match="a CUDA graph runs on a GPU, not on cpu"):
        train(
            network, make_optimizer("adamw", network.parameters()), data, epochs=1, settings=Settings(cuda_graph=True)
        )


@pytest.mark.parametrize("name", ["one-cycle", "triangular", "cosine", "warmup-stable-decay"])
def test_learning_rates_of_a_graph_are_tensors_at_one_address(name):
    eager, captured = (optimizer(lr=0.1, capturable=True) for _ in range(2))
    for group in captured.param_groups:
        assert isinstance(group["lr"], float)
    schedules = Schedule(name, eager, 8), Schedule(name, captured, 8, captured=True)
    address = captured.param_groups[0]["lr"].data_ptr()
    for _ in range(8):
        assert float(captured.param_groups[0]["lr"]) == eager.param_groups[0]["lr"]
        assert captured.param_groups[0]["lr"].data_ptr() == address
        for schedule in schedules:
            schedule.advance()
    assert captured.param_groups[0]["betas"] == (0.9, 0.999)  # which a graph would freeze


@pytest.fixture
def replays(monkeypatch):
    """In place of a graph, the captured function, called anew at each replay: what a graph does, on the CPU.

    A capture runs nothing, and its outputs stay where they are.
    """
    count = []

    def capture(run):
        outputs = torch.zeros(()), torch.zeros(16, 3)

        def replay():
            count.append(1)
            for fixed, new in zip(outputs, run(), strict=True):
                fixed.copy_(new)

        return replay, outputs

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "on_side_stream", lambda run: run())
    return count


@pytest.mark.parametrize("names", [[], ["cutmix"]], ids=["labels", "probabilities"])
def test_replays_train_as_the_step_does(data, replays, names):
    def losses(wrap):
        network = seeded(HandClassifier, 0)
        chosen = make_optimizer("adamw", network.parameters())
        step = wrap(Step(network, chosen, nn.functional.cross_entropy, Precision(None, torch.device("cpu"))))
        generator, augment = torch.Generator().manual_seed(0), compose(names, 3) if names else None
        results = []
        for _ in range(2):
            order = torch.randperm(100, generator=generator)
            for index, part in zip(order.split(16), parts([16] * 6 + [4], 1, ALONE), strict=True):
                batch = data.train_images[index] / 255, data.train_labels[index]
                loss, scores = step(*(augment(*batch, generator) if augment else batch), part)
                results.append((loss.item(), scores.tolist()))
        return results

    expected = losses(lambda step: step)
    assert not replays
    assert losses(GraphedStep) == expected
    assert len(replays) == 9  # of 14 batches, 3 warm up, and 2 are smaller


@needs_gpu
@pytest.mark.parametrize(
    "options", [{}, {"amp": "bf16"}, {"schedule": "cosine", "ema": 0.9}, {"channels_last": True}], ids=str
)
@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "torch.adamw"])
def test_a_graph_trains_the_same_on_a_gpu(data, name, options):
    def run(**more):
        network = seeded(HandClassifier, 0).cuda()
        chosen = make_optimizer(name, network.parameters(), capturable=True)
        return list(train(network, chosen, data, epochs=3, batch_size=16, settings=Settings(**options, **more)))

    eager, graph = run(), run(cuda_graph=True)
    assert [e.train_loss for e in graph] == pytest.approx([e.train_loss for e in eager], rel=0.02)
    assert all(math.isnan(epoch.step_seconds) for epoch in graph)
    assert all(0 < epoch.step_seconds < epoch.seconds for epoch in eager)


@needs_gpu
@pytest.mark.parametrize("settings", [Settings(), Settings(ema=0.9, schedule="cosine", max_grad_norm=1.0)], ids=str)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_no_step_waits_for_the_gpu(data, name, settings):
    network, epochs = seeded(HandClassifier, 0).cuda(), []

    def watch(batches, count, metrics):
        batches = list(batches)  # making them may wait
        if epochs:  # in the first one things are set up
            torch.cuda.set_sync_debug_mode("error")
        epochs.append(count)
        yield from batches
        torch.cuda.set_sync_debug_mode("default")

    chosen = make_optimizer(name, network.parameters())
    try:
        list(train(network, chosen, data, epochs=3, batch_size=16, settings=settings, progress=watch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
