"""`fully_shard` over gloo: processes train as one would, and go on with a checkpoint of any other number of them."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import gloo_group, run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusedopt.data import make_hands
from fusedopt.models import HandClassifier
from fusedopt.training import Checkpoint, RunFolder, Settings, evaluate, make_loss, make_optimizer, seeded, train
from fusedopt.training.auto_lr import find_training_lr
from fusedopt.training.sharded import shard, whole

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

CPU = torch.device("cpu")
FULL = Settings(accumulate=2, ema=0.8, schedule="cosine", patience=5)
EPOCHS = 2
# What one process does too: an optimizer, its options, and the settings.
KINDS = {
    "adamw": ("adamw", {"max_grad_norm": 0.5}, FULL),
    "lamb": ("lamb", {"weight_decay": 0.1}, Settings()),
    "swats": ("swats", {}, Settings(ema=0.9)),
    "torch": ("torch.sgd", {}, Settings(max_grad_norm=0.5, amp="bf16")),
    "fp16": ("adamw", {"fused": True}, Settings(amp="fp16")),
}
EXACT = ("adamw", "lamb", "swats")


class Normed(nn.Module):
    """A network that cannot be trained on one image, with running statistics and a scalar that is no parameter."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(3 * 28 * 28, affine=False), nn.Linear(3 * 28 * 28, 3)

    def forward(self, images):
        return self.fc(self.norm(images.flatten(1)))


def _data():
    return make_hands(85, 31)  # batches of 14 and one of 1: a process without an image


def _fit(kind, wrap, model=HandClassifier, **options):
    name, extra, settings = KINDS[kind]
    network = wrap(seeded(model, 0))
    optimizer = make_optimizer(name, network.parameters(), **extra)
    rows, kept = [], []
    given = {"epochs": EPOCHS, "batch_size": 14, "settings": settings, **options}
    for epoch in train(network, optimizer, _data(), on_epoch=lambda epoch, _: kept.append(epoch.number), **given):
        rows.append([epoch.train_loss, epoch.train_accuracy, epoch.test_loss, epoch.test_accuracy])
    module = network.module if isinstance(network, DistributedDataParallel) else network
    state = {"model": whole(module.state_dict()), "optimizer": whole(optimizer.state_dict()["state"])}
    return {"rows": rows, "state": state, "kept": kept}


def _sharded(network):
    return shard(network, CPU)


def _refusal(function):
    try:
        function()
    except ValueError as error:
        return str(error)
    return None


def _worker(rank, folder, world):
    shared = folder.parent
    with gloo_group(rank, folder, world):
        results = {}
        if world == 2:
            results |= {kind: _fit(kind, _sharded) for kind in KINDS}
            results["normed"] = _fit("adamw", _sharded, Normed)
        for kind in EXACT:
            for origin in (f"{kind}-alone", f"{kind}-of2"):
                saved = shared / origin
                if world == 2 and origin.endswith("of2"):
                    _fit(kind, _sharded, epochs=1, checkpoint_dir=saved)
                    continue
                there = shared / f"{origin}-by{world}"
                if rank == 0:
                    there.symlink_to(saved)
                dist.barrier()
        torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    _worker(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
