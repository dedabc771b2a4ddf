"""A run that is interrupted and resumed agrees bit for bit with one that was not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_and_resume import COMBINATIONS, KILLS
from runs import OPTIMIZERS, SCHEDULERS, STORED, Run
from torch import nn
from torch.utils.data import DataLoader

import fusedopt
from fusedopt.training import Checkpoint, ResumableSampler

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_optimizer_is_here() -> None:
    cases = {type(make([nn.Parameter(torch.zeros(1))])) for make in OPTIMIZERS.values()}
    package = {value for value in vars(fusedopt).values() if isinstance(value, type)}
    assert cases == {cls for cls in package if issubclass(cls, torch.optim.Optimizer)}
    assert {name for name, _ in COMBINATIONS} == {*OPTIMIZERS, *STORED}


@pytest.mark.parametrize(
    ("optimizer", "scheduler"), [*product(OPTIMIZERS, SCHEDULERS), *product(STORED, ("one-cycle", "plateau"))]
)
def test_resumed_equals_uninterrupted(optimizer: str, scheduler: str, tmp_path: Path) -> None:
    straight = Run(optimizer, scheduler, tmp_path / "none")
    straight.train(11)
    expected = straight.digest()
    first = Run(optimizer, scheduler, tmp_path / "run")
    first.train(7)  # in the middle of the second epoch
    first.checkpoint.save(epoch=first.sampler.epoch, step=first.step)
    second = Run(optimizer, scheduler, tmp_path / "run", seed=5)
    second.load()
    assert second.step == 7
    second.train(11)
    assert second.digest() == expected


def test_the_digest_sees_every_part(tmp_path: Path) -> None:
    """Without it, the tests above could not fail."""
    digests = set()
    for name in (None, "model", "optimizer", "scheduler", "scaler", "noise", "sampler", "generator"):
        run = Run("adamw", "step", tmp_path)
        run.train(4)
        if name == "model":
            run.model[0].bias.data[0] += 1e-6
        elif name == "optimizer":
            run.optimizer.state[run.model[0].bias]["exp_avg_sq"][0] *= 1.0001
        elif name == "scheduler":
            run.scheduler.last_epoch += 1
        elif name == "scaler":
            run.scaler.update(8.5)
        elif name == "noise":
            run.noise.steps += 1
        elif name == "sampler":
            run.sampler.advance(1)
        elif name == "generator":
            torch.rand(1, generator=run.generator)
        digests.add(run.digest())
    assert len(digests) == 8


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: a process may be killed there as well, and flushing costs nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def script(*arguments: object) -> list[dict[str, Any]]:
    path = Path(__file__).parents[1] / "kill_and_resume.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # a CUDA context does not survive a fork
    command = [sys.executable, str(path), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.one_torch
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(quick_folder: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"kill_and_resume.py random FOLDER {seed}")
    runs = script("random", quick_folder, seed)
    print(*runs, sep="\n")
    assert len(runs) == len(COMBINATIONS)
    for run in runs:
        reached = run["reached"]
        assert len(reached) == KILLS
        assert reached == sorted(reached)  # no kill loses what was saved before
        assert reached[-1] > 10
        assert run["resumed"] == run["uninterrupted"], run["run"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_call_of_a_save(quick_folder: Path) -> None:
    points = script("points", quick_folder)
    assert len(points) >= 16  # before and after: open, 3 writes, 2 fsyncs, replace, unlink
    assert all(point["equal"] for point in points), points
    assert {point["position"] for point in points} == {3, 4}
    assert any(name.endswith(".partial") for point in points for name in point["left"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_sampler_in_a_loader_that_fetches_ahead(workers: int) -> None:
    def indices(sampler: ResumableSampler, steps: int) -> list[int]:
        seen: list[int] = []
        while steps:
            generator = sampler.generator
            for batch in DataLoader(range(23), 4, sampler=sampler, num_workers=workers, generator=generator):
                seen += batch.tolist()
                sampler.advance(len(batch))
                steps -= 1
                if not steps:
                    break
        return seen

    straight = indices(ResumableSampler(23, seed=4), 15)
    assert sorted(straight[:23]) == sorted(straight[23:46]) == list(range(23))
    assert straight[:23] != straight[23:46]
    first, second = ResumableSampler(23, seed=4), ResumableSampler(23, seed=4)
    head = indices(first, 8)
    second.load_state_dict(first.state_dict())
    assert (second.epoch, second.position, len(second)) == (1, 8, 15)
    assert head + indices(second, 7) == straight


def test_orders_of_the_sampler() -> None:
    generator = torch.Generator().manual_seed(3)
    sampler = ResumableSampler(9, seed=3)
    for _ in range(3):
        assert list(sampler) == torch.randperm(9, generator=generator).tolist()
        sampler.advance(9)
    assert list(ResumableSampler(4, shuffle=False)) == [0, 1, 2, 3]


def test_sampler_refusals() -> None:
    sampler = ResumableSampler(5)
    with pytest.raises(ValueError, match="at least 1 sample"):
        ResumableSampler(0)
    with pytest.raises(ValueError, match="has 5 left"):
        sampler.advance(6)
    list(sampler)
    with pytest.raises(RuntimeError, match=r"call sampler\.advance"):
        list(sampler)
    sampler.advance(5)
    assert len(list(sampler)) == 5
    state = sampler.state_dict()
    for other in (ResumableSampler(6), ResumableSampler(5, seed=1), ResumableSampler(5, shuffle=False)):
        before = other.state_dict()
        with pytest.raises(ValueError, match="the sampler was saved with"):
            other.load_state_dict(state)
        assert other.epoch == 0
        assert torch.equal(other.state_dict()["generator"], before["generator"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_of_every_cuda_device(tmp_path: Path) -> None:
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    generator = torch.Generator(devices[0])
    checkpoint = Checkpoint(tmp_path, generator=generator)
    checkpoint.save(epoch=0, step=0)
    expected = [torch.rand(5, device=d) for d in devices] + [torch.rand(5, device=devices[0], generator=generator)]
    checkpoint.load()
    again = [torch.rand(5, device=d) for d in devices] + [torch.rand(5, device=devices[0], generator=generator)]
    assert all(map(torch.equal, expected, again))
