"""What `benchmarks/communication.py` computes is what steps do, on real processes and on simulated ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import BY_NAME
from ranks import environment, gloo_group, run_ranks

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from sharded import SHAPES, layouts, run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from communication import AllReduce, collectives, table

WORLDS, SIMULATED = (2, 4), (8, 64, 1024)
SCOPES = {"adamw-decay": None, "adamw-clip": None, "lamb-no-clip-decay": "tensor", "lamb-decay": "tensor"}
SCOPES |= {"swats-decay": "group", "swats-clip": "group"}


def counted(name: str, place: Any) -> list[tuple[int, int]]:
    """Processes and bytes of each collective of a step."""
    optimizer, _, _ = run(BY_NAME[name].make, place, steps=1)
    found, all_reduce = [], dist.all_reduce

    def count(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append((dist.get_world_size(kwargs["group"]), tensor.nbytes))
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = count
    try:
        optimizer.step()
    finally:
        dist.all_reduce = all_reduce
    return found


def computed(name: str, sharded: tuple[int, ...]) -> list[tuple[int, int]]:
    clips = BY_NAME[name].max_grad_norm is not None
    found = collectives(SCOPES[name], clips=clips, tensors=len(SHAPES), groups=2, sharded=sharded)
    return [(c.processes, c.bytes) for c in found]


def _worker(rank: int, folder: Path, world: int) -> None:
    with gloo_group(rank, folder, world):
        places = layouts(world)
        torch.save({(n, k): counted(n, places[k]) for n in SCOPES for k in ("fsdp", "hsdp")}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    return {world: run_ranks(__file__, tmp_path_factory.mktemp(f"of{world}"), world, timeout=300) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", SCOPES)
def test_real_processes(ranks: dict[int, list[Any]], world: int, name: str) -> None:
    for result in ranks[world]:
        assert result[name, "fsdp"] == computed(name, (world,))
        assert result[name, "hsdp"] == computed(name, (2,))  # nothing goes from replica to replica


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    script = [sys.executable, __file__, "simulate"]
    result = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("world", SIMULATED)
def test_simulated_processes(simulated: dict[str, Any], world: int, name: str) -> None:
    assert [tuple(c) for c in simulated[f"{name} {world}"]] == computed(name, (world,))


def test_two_dimensions() -> None:
    assert computed("lamb-decay", (128, 8)) == [(128, 8), (8, 8), (128, 96), (8, 96)]
    assert computed("lamb-decay", (1, 8)) == computed("lamb-decay", (8,))
    assert AllReduce(4, 800).sent == 1200
    assert "| LAMB | yes | 1024 | 2 | " in table(161, 1)


def _simulate() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    found = {}
    for world in SIMULATED:
        dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=world)
        place = layouts(world)["fsdp"]
        found |= {f"{name} {world}": counted(name, place) for name in SCOPES}
        dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "simulate":
        _simulate()
    else:
        folder = Path(sys.argv[2])
        _worker(int(sys.argv[1]), folder, int(folder.name.removeprefix("of")[0]))
