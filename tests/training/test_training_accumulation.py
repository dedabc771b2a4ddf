"""Steps on several batches, or on a share of one: every image weighs the same."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_runs import assert_same_weights, fit, written_out

from fusedopt.data import make_hands
from fusedopt.training.batches import parts
from fusedopt.training.compute import Precision
from fusedopt.training.distributed import ALONE, World
from fusedopt.training.step import Step

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return make_hands(100, 30)


@pytest.mark.parametrize(("count", "batch_size", "accumulate"), [(100, 16, 3), (7, 3, 2), (5, 9, 4), (8, 2, 4)])
def test_every_image_weighs_the_same_in_its_step(count, batch_size, accumulate):
    sizes = [len(batch) for batch in torch.arange(count).split(batch_size)]
    plan = list(parts(sizes, accumulate, ALONE))
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
    plans = [list(parts([8, 8, 5], 1, world)) for world in worlds]
    for number, batch in enumerate(order.split(8)):
        taken = [share[number][: plan[number].images] for share, plan in zip(shares, plans, strict=True)]
        assert torch.equal(torch.cat(taken), batch)
        assert sum(plan[number].weight for plan in plans) == pytest.approx(4)  # their mean is 1
    (last,) = list(parts([8, 8, 1], 1, World(3, 4)))[-1:]
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


def test_a_step_leaves_gradients_alone_until_the_next_group(data):
    network = nn.Linear(1, 1, bias=False)
    step = Step(
        network,
        torch.optim.SGD(network.parameters(), lr=1.0),
        lambda s, t: s.sum(),
        Precision(None, torch.device("cpu")),
    )
    for part in parts([1, 1, 1, 1], 2, ALONE):
        before = network.weight.item()
        step(torch.ones(1, 1), torch.zeros(1, dtype=torch.long), part)
        assert network.weight.item() == before - (1.0 if part.last else 0.0)
