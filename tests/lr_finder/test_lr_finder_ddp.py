"""Two processes of DistributedDataParallel over gloo: one curve, one suggestion, and everything put back on both."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import gloo_group, run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import fusedopt
from fusedopt.lr_finder import LRFinder, find_lr

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
WORLD = 2


def _data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(96, 4, generator=generator, dtype=torch.float64)
    labels = inputs.sum(1, keepdim=True) + 0.1 * torch.randn(96, 1, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, labels)


def _train(model, optimizer, loader):
    for inputs, labels in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), labels).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def _make(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, dtype=torch.float64), nn.Tanh(), nn.Linear(8, 1, dtype=torch.float64))
    wrapped = DistributedDataParallel(model)
    sampler = DistributedSampler(_data(), WORLD, rank, shuffle=True)
    return wrapped, fusedopt.SGD(wrapped.parameters(), lr=0.05, momentum=0.9), DataLoader(_data(), 8, sampler=sampler)


def _worker(rank, folder):
    with gloo_group(rank, folder, WORLD):
        model, optimizer, loader = _make(rank)
        undisturbed = _train(model, optimizer, loader)

        model, optimizer, loader = _make(rank)
        criterion, local = nn.MSELoss(), []
        hook = criterion.register_forward_hook(lambda *args: local.append(args[-1].item()))
        options = {"start_lr": 1e-4, "end_lr": 100.0, "num_iter": 60}
        result = find_lr(model, optimizer, criterion, loader, **options)
        hook.remove()
        validated = find_lr(model, optimizer, criterion, loader, val_loader=DataLoader(_data(), 7 + rank), **options)
        plain = find_lr(model.module, optimizer, criterion, loader, num_iter=3)  # not parallel: no other rank is asked
        grouped = find_lr(model.module, optimizer, criterion, loader, num_iter=3, process_group=dist.group.WORLD)
        finder = LRFinder(model, optimizer, criterion)
        finder.range_test(loader, **options)
        finder.reset()
        after = _train(model, optimizer, loader)
        torch.save(
            {
                "losses": result.losses,
                "smoothed": result.smoothed,
                "history": finder.history,
                "stopped": result.stopped,
                "suggestions": result.suggestions,
                "local": local,
                "validated": validated.losses,
                "plain": plain.losses,
                "grouped": grouped.losses,
                "same": all(torch.equal(a, b) for a, b in zip(undisturbed, after, strict=True)),
            },
            folder / f"{rank}.pt",
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(__file__, tmp_path_factory.mktemp("ddp"), WORLD)


def test_every_rank_has_the_same_curve_and_suggestions(ranks):
    for key in ("losses", "smoothed", "history", "stopped", "suggestions", "validated", "grouped"):
        assert ranks[0][key] == ranks[1][key], key
    assert ranks[0]["suggestions"]["steepest"] > 0
    assert ranks[0]["stopped"] == "diverged"


def test_losses_are_means_over_the_ranks(ranks):
    local = [r["local"] for r in ranks]
    assert local[0] != local[1]
    assert ranks[0]["losses"] == pytest.approx([(a + b) / 2 for a, b in zip(*local, strict=True)], rel=1e-12)
    assert ranks[0]["history"]["loss"] == ranks[0]["smoothed"]
    means = [(a + b) / 2 for a, b in zip(*(r["plain"] for r in ranks), strict=True)]
    assert ranks[0]["plain"] != ranks[1]["plain"]
    assert ranks[0]["grouped"] == pytest.approx(means, rel=1e-6)


def test_training_afterwards_is_the_same(ranks):
    assert all(r["same"] for r in ranks)


if __name__ == "__main__":
    _worker(int(sys.argv[1]), Path(sys.argv[2]))
