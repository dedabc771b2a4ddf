"""Two processes over gloo, as `torchrun` starts them: they train as one would, and only one of them writes."""

import gc
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from command_line import run as command
from made_images import saved
from ranks import environment, gloo_group, run_ranks, torchrun
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusedopt.data import make_hands
from fusedopt.models import HandClassifier
from fusedopt.training import RunFolder, Settings, make_optimizer, seeded, train
from fusedopt.training.auto_lr import find_training_lr
from fusedopt.training.distributed import process_group

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
    pytest.mark.usefixtures("one_thread"),
]
WORLD = 2
OPTIONS = {"epochs": 2, "batch_size": 14, "settings": Settings(accumulate=2, ema=0.8, schedule="cosine", patience=5)}


class Normed(nn.Module):
    """A network with dropout, and with running statistics, which each process gathers from its own images."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3 * 28 * 28, 3)

    def forward(self, images):
        return self.fc(self.drop(self.norm(images)).flatten(1))


def _data():
    return make_hands(85, 31)  # batches of 14 and one of 1: a process without an image


def _fit(model, wrap, **options):
    network = seeded(model, 0)
    optimizer = make_optimizer("adamw", network.parameters())
    kept = []
    given = {**OPTIONS, "on_epoch": lambda epoch, averaged: kept.append((epoch.number, epoch.best)), **options}
    rows = []
    for epoch in train(wrap(network), optimizer, _data(), **given):
        times = ("seconds", "step_seconds", "images_per_second")
        rows.append({name: value for name, value in epoch.row().items() if name not in times})
    return {"rows": rows, "state": network.state_dict(), "reported": kept}


def _worker(rank, folder):
    with gloo_group(rank, folder, WORLD):
        results = {"plain": _fit(HandClassifier, DistributedDataParallel)}
        straight = {"epochs": 3, "batch_size": 16, "settings": Settings(ema=0.9)}
        results["straight"] = _fit(Normed, DistributedDataParallel, **straight)
        checkpoints = {**straight, "checkpoint_dir": folder / "checkpoints"}
        _fit(Normed, DistributedDataParallel, **{**checkpoints, "epochs": 2})
        results["resumed"] = _fit(Normed, DistributedDataParallel, **checkpoints, resume=True)
        results["draws"] = draws = []

        def draw(images, labels, generator):  # an augmentation that changes nothing
            draws.append((torch.rand(1, generator=generator).item(), torch.rand(1).item()))
            return images, labels

        _fit(HandClassifier, DistributedDataParallel, augmentation=draw)
        network = DistributedDataParallel(seeded(HandClassifier, 0))
        optimizer = make_optimizer("adamw", network.parameters())
        results["found"] = find_training_lr(network, optimizer, _data(), batch_size=14, num_iter=4).losses
        try:
            _fit(HandClassifier, DistributedDataParallel, batch_size=15)
        except ValueError as error:
            results["refusal"] = str(error)
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(__file__, tmp_path_factory.mktemp("ddp"), WORLD)


def test_processes_train_as_one_does(ranks):
    alone = _fit(HandClassifier, lambda network: network)
    for rank in ranks:
        torch.testing.assert_close(dict(rank["plain"]["state"]), dict(alone["state"]), rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(rank["plain"]["rows"], alone["rows"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
    moved = seeded(HandClassifier, 0).fc1.weight - alone["state"]["fc1.weight"]
    assert moved.abs().max() > 1e-3


def test_all_processes_have_the_same_results(ranks):
    for name in ("plain", "straight"):
        torch.testing.assert_close(ranks[0][name]["state"], ranks[1][name]["state"], rtol=0, atol=0)
        assert ranks[0][name]["rows"] == ranks[1][name]["rows"]


def test_only_the_main_process_reports(ranks):
    assert [number for number, _ in ranks[0]["plain"]["reported"]] == [1, 2]
    assert ranks[1]["plain"]["reported"] == []


def test_processes_resume_bit_for_bit(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["resumed"]["state"], rank["straight"]["state"], rtol=0, atol=0)
        assert rank["resumed"]["rows"] == rank["straight"]["rows"][2:]


def test_processes_augment_and_drop_each_in_their_own_way(ranks):
    draws = [rank["draws"] for rank in ranks]
    assert len(draws[0]) == len(draws[1]) == 14
    assert len({*draws[0], *draws[1]}) == 28


def test_a_batch_that_cannot_be_shared_is_refused(ranks):
    assert ranks[0]["refusal"] == "a batch of 15 images cannot be shared by 2 processes evenly"


def test_the_learning_rate_is_found_together(ranks):
    assert len(ranks[0]["found"]) == 4
    assert ranks[0]["found"] == ranks[1]["found"]


FIXED = ["--batch-size", "8", "--device", "cpu", "--no-report"]


def _torchrun(folder, *options):
    return torchrun(WORLD, "-m", "fusedopt", "train", *options, *FIXED, "--epochs", "1", cwd=folder)


@pytest.mark.parametrize("options", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_torchrun_runs_the_command(tmp_path, options):
    for name, color in ("dark", 30), ("light", 220):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for i in range(12):
            saved(tmp_path / "shades" / name, np.full((28, 28, 3), color + i, np.uint8), name=f"{i}.png")
    code, output, errors = _torchrun(tmp_path, "shades", *options)
    assert code == 0, errors
    assert len(re.findall("epoch 1/1", output)) == 1
    run = RunFolder.open(tmp_path / "runs" / "shades-resnet9-small-1")
    assert len(run.rows) == 1
    assert run.load_model()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["shades-resnet9-small-1"]
    again = ["train", tmp_path / "shades", *FIXED, "--epochs", 2, "--resume", "--out", run.folder]
    assert "going on after epoch 1 of 2" in command(*again).output  # by one process


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hands", "--out", "run"], "fusedopt: run: holds an earlier run"),
        (["fashion-mnist", "--data-dir", "."], "train-images-idx3-ubyte.gz: no such file"),
    ],
)
def test_one_process_says_why_and_all_end(tmp_path, options, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.json").write_text("[]")
    code, _, errors = _torchrun(tmp_path, *options)
    assert code == 1
    assert errors.count(message) == 1
    assert "fusedopt/cli/train.py" not in errors  # a traceback there is of the launcher, which has seen the exits


def test_leaving_the_group_does_not_hang():
    # With PyTorch 2.13 a network that outlives its group hung in one of 15 tries, see join_gloo.
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "1"}
    subprocess.run([sys.executable, __file__, "leave"], env=environment() | ranks, timeout=120, check=True)


def _leave():
    with process_group(torch.device("cpu")):
        network = DistributedDataParallel(nn.Linear(2, 2))  # noqa: F841  which is let go of after the group
        dist.all_reduce(torch.ones(1))


if __name__ == "__main__":
    if sys.argv[1] == "leave":
        importlib.import_module("torch._dynamo")  # which the first DistributedDataParallel would import
        gc.freeze()  # what is collected at the end, 60 times, is what was made since, and not all of torch
        sys.setswitchinterval(1000)  # threads get the GIL only where it is given up
        for _ in range(60):
            _leave()
    else:
        _worker(int(sys.argv[1]), Path(sys.argv[2]))
