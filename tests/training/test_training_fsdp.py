"""`fully_shard` over gloo: processes train as one would, and go on with a checkpoint of any other number of them."""

import functools
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from command_line import plain, run
from ranks import gloo_group, run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusedopt import files
from fusedopt.data import make_hands
from fusedopt.models import HandClassifier
from fusedopt.runs.checkpoint import read
from fusedopt.runs.shards import whole
from fusedopt.training import Checkpoint, Settings, make_optimizer, seeded, train
from fusedopt.training.auto_lr import find_training_lr
from fusedopt.training.distributed import World, parallel

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from torch.distributed.fsdp import fully_shard

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]
KINDS = {  # an optimizer, its options, the settings
    "adamw-clip": (
        "adamw",
        {"max_grad_norm": 0.5},
        Settings(accumulate=2, ema=0.8, schedule="cosine", patience=5),
    ),
    "lamb": ("lamb", {"weight_decay": 0.1}, Settings()),
    "swats": ("swats", {}, Settings(ema=0.9)),
    "torch-clip": ("torch.sgd", {}, Settings(max_grad_norm=0.5)),
    "bf16": ("sgd", {}, Settings(amp="bf16")),
    "fp16": ("torch.sgd", {}, Settings(amp="fp16")),
    "compiled": ("sgd", {}, Settings(compile=True, accumulate=2)),
}
ALONE = "adamw-clip", "lamb", "swats", "torch-clip"
HALF = "bf16", "fp16"
RESUMED = "adamw-clip", "lamb"


class Normed(nn.Module):
    """A network that cannot be trained on one image, with running statistics, which each process gathers by itself."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(3 * 28 * 28), nn.Linear(3 * 28 * 28, 3)

    def forward(self, images):
        return self.fc(self.norm(images.flatten(1)))


def _data():
    return make_hands(85, 31)  # batches of 28 and one of 1: processes without an image


def _sharded(network):
    """Linear layers by themselves, which gather their weights in each pass: a process that goes on alone hangs."""
    for layer in network.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return parallel(network, World.joined(), torch.device("cpu"), fsdp=True)


def _alone(network):
    return network


def _fit(kind, wrap, model=HandClassifier, stop=2, **options):
    """Trains, and breaks off after some epochs; returns all that came of it."""
    name, extra, settings = KINDS[kind]
    network = wrap(seeded(model, 0))
    optimizer = make_optimizer(name, network.parameters(), **extra)
    rows, kept = [], []

    def keep(epoch, evaluated):
        kept.append({name: tensor.clone() for name, tensor in whole(dict(evaluated.state_dict())).items()})
        with torch.no_grad():
            evaluated(torch.zeros(2, 3, 28, 28))  # gathers weights, which are not to be trained on

    for epoch in train(
        network, optimizer, _data(), epochs=2, batch_size=28, settings=settings, on_epoch=keep, **options
    ):
        rows.append([epoch.train_loss, epoch.train_accuracy, epoch.test_loss, epoch.test_accuracy])
        if epoch.number == stop:
            break
    module = network.module if isinstance(network, DistributedDataParallel) else network
    model_state, states = whole(dict(module.state_dict())), whole(optimizer.state_dict()["state"])
    return {"rows": rows, "model": model_state, "optimizer": states, "kept": kept}


def _resume(kind, wrap, folder, origin):
    """Goes on with what another number of processes began, in a copy of its folder."""
    own = folder / f"{kind}-{origin}"
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.copytree(folder.parent / f"{kind}-{origin}", own)
    World.joined().wait()
    return _fit(kind, wrap, checkpoint_dir=own, resume=True)


def _refusal(function):
    try:
        function()
    except (ValueError, files.FileError) as error:
        return str(error)
    return None


def _refusals(folder):
    """What is said to models that would not be trained, or saved, as one process does."""
    found = {}

    def ask(name, wrap, optimizer=None, **settings):
        network = seeded(HandClassifier, 0)
        before = make_optimizer("sgd", network.parameters())
        wrap(network)
        chosen = before if optimizer == "before" else make_optimizer("sgd", network.parameters())
        options = {"epochs": 1, "batch_size": 28, "settings": Settings(**settings)}
        found[name] = _refusal(lambda: train(network, chosen, _data(), **options))

    ask("channels_last", fully_shard, channels_last=True)
    ask("cuda_graph", fully_shard, cuda_graph=True)
    ask("parts", lambda network: fully_shard(network.fc1))
    ask("ignored", lambda network: fully_shard(network, ignored_params={network.fc3.bias}))
    ask("before", fully_shard, optimizer="before")
    sharded = _sharded(seeded(HandClassifier, 0))
    found["checkpoint"] = _refusal(lambda: Checkpoint(folder / "refused", model=sharded).save(epoch=0, step=0))
    return found


def _two_processes(folder):
    """All that is not going on from a checkpoint."""
    compile_by_inductor, torch.compile = torch.compile, functools.partial(torch.compile, backend="aot_eager")
    results = {kind: _fit(kind, _sharded) for kind in KINDS if kind not in HALF}
    torch.compile = compile_by_inductor
    wraps = _sharded, DistributedDataParallel
    results |= {kind: [_fit(kind, wrap) for wrap in wraps] for kind in HALF}
    results["normed"] = [_fit("swats", wrap, Normed) for wrap in wraps]
    for kind in RESUMED:
        _fit(kind, _sharded, stop=1, checkpoint_dir=folder.parent / f"{kind}-2")
    _fit("lamb", DistributedDataParallel, stop=1, checkpoint_dir=folder.parent / "lamb-ddp")
    results["lamb", "ddp"] = _resume("lamb", _sharded, folder, "ddp")
    found = []
    for wrap in wraps:
        network = wrap(seeded(HandClassifier, 0))
        optimizer = make_optimizer("adamw", network.parameters())
        found.append(find_training_lr(network, optimizer, _data(), batch_size=14, num_iter=4).losses)
    return {**results, "found": found, "refusals": _refusals(folder)}


def _worker(rank, folder, world):
    sys.modules["fusedopt.training.evaluate"]._CHUNK = 5  # of 16 images on one process and 15 on the other
    with gloo_group(rank, folder, world):
        results = _two_processes(folder) if world == 2 else {}
        results |= {(kind, origin): _resume(kind, _sharded, folder, origin) for kind in RESUMED for origin in (1, 2)}
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def alone():
    return {kind: _fit(kind, _alone) for kind in ALONE}


@pytest.fixture(scope="module")
def ranks(folder, alone):
    """By the number of processes, what each has."""
    for kind in RESUMED:
        _fit(kind, _alone, stop=1, checkpoint_dir=folder / f"{kind}-1")
    results = {}
    for world in (2, 4):
        (folder / f"by{world}").mkdir()
        results[world] = run_ranks(__file__, folder / f"by{world}", world, timeout=240)
    (folder / "by1").mkdir()
    results[1] = [{(kind, 2): _resume(kind, _alone, folder / "by1", 2) for kind in RESUMED}]
    return results


def _assert_same(ours, theirs, rtol=1e-3, atol=1e-5):
    for name in ("model", "optimizer", "kept"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=rtol, atol=atol)
    torch.testing.assert_close(ours["rows"], theirs["rows"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ALONE)
def test_processes_train_as_one_does(ranks, alone, kind):
    _assert_same(ranks[2][0][kind], alone[kind])
    assert ranks[2][1][kind]["rows"] == ranks[2][0][kind]["rows"]
    assert len(ranks[2][1][kind]["kept"]) == 2  # every process is told, as it has a part of the network
    moved = seeded(HandClassifier, 0).fc1.weight - alone[kind]["model"]["fc1.weight"]
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("kind", HALF)
def test_sixteen_bits_are_as_with_whole_copies(ranks, kind):  # with float16 a step overflows: that of a single image
    _assert_same(*ranks[2][0][kind])


def test_compiled_trains_as_one_process_does(ranks):
    name, _, settings = KINDS["compiled"]
    network = seeded(HandClassifier, 0)
    optimizer = make_optimizer(name, network.parameters())
    eager = Settings(accumulate=settings.accumulate)
    list(train(network, optimizer, _data(), epochs=2, batch_size=28, settings=eager))
    torch.testing.assert_close(ranks[2][0]["compiled"]["model"], dict(network.state_dict()), rtol=1e-3, atol=1e-5)


def test_batch_statistics_are_as_with_whole_copies(ranks):
    sharded, copies = ranks[2][0]["normed"]
    _assert_same(sharded, copies)
    assert sharded["model"]["norm.num_batches_tracked"] == 6  # of 28, 28 and 29 images: one alone cannot be normalised


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.parametrize(("origin", "world"), [(1, 2), (1, 4), (2, 1), (2, 4), (2, 2)])
def test_another_number_of_processes_goes_on(ranks, alone, kind, origin, world):
    resumed = ranks[world][0][kind, origin]
    assert len(resumed["rows"]) == 1
    expected = {**alone[kind], **{name: alone[kind][name][1:] for name in ("rows", "kept")}}
    _assert_same(resumed, expected)


@pytest.mark.parametrize("kind", RESUMED)
def test_as_many_processes_resume_bit_for_bit(ranks, kind):
    resumed, straight = ranks[2][0][kind, 2], ranks[2][0][kind]
    for name in ("model", "optimizer"):
        torch.testing.assert_close(resumed[name], straight[name], rtol=0, atol=0)
    assert resumed["rows"] == straight["rows"][1:]


def test_processes_go_on_with_what_whole_copies_began(ranks, alone):
    torch.testing.assert_close(ranks[2][0]["lamb", "ddp"]["model"], alone["lamb"]["model"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", RESUMED)
def test_a_checkpoint_is_that_of_one_process(ranks, folder, kind):
    ours, theirs = (read(Checkpoint(folder / f"{kind}-{world}").paths()[-1]) for world in (2, 1))
    assert ours.keys() == theirs.keys()
    for name in ("model", "optimizer", *(["ema"] if "ema" in theirs else [])):
        torch.testing.assert_close(dict(ours[name]), dict(theirs[name]), rtol=1e-3, atol=1e-5)


def test_the_learning_rate_is_found_together(ranks):
    sharded, copies = ranks[2][0]["found"]
    assert sharded == pytest.approx(copies, rel=1e-4)
    assert ranks[2][1]["found"][0] == sharded


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("channels_last", "channels_last lays out weights in a way that fully_shard does not take: leave it out"),
        ("cuda_graph", "cuda_graph trains in one process: leave it out"),
        ("parts", "call it on the model too"),
        ("ignored", "fully_shard ignores fc3.bias, whose gradient would differ by process; shard it too"),
        ("before", "the optimizer has parameters from before fully_shard; make it from those of the sharded model"),
        ("checkpoint", "call states() in all of them, and give save() what rank 0 gets"),
    ],
)
def test_what_would_not_be_that_of_one_process_is_refused(ranks, name, message):
    for rank in ranks[2]:
        assert message in rank["refusals"][name]


def test_the_command_needs_torchrun():
    assert "--fsdp needs torchrun" in plain(run("train", "hands", "--fsdp", code=2).output)


if __name__ == "__main__":
    _worker(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
