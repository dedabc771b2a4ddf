"""DTensor parameters of any mesh: the result of one process, on real processes over gloo."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from cases import BY_NAME, Case
from ranks import gloo_group, run_ranks

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from sharded import compare, layouts, run

WORLDS = (2, 4)
LAYOUTS = ("fsdp", "fsdp-dim1", "hsdp", "tensor-parallel", "2d", "beside-plain", "two-meshes")
CASES = [
    BY_NAME[name]
    for name in (
        "sgd-decay",
        "sgd-nesterov-clip-decay",
        "sgd-classic-nesterov-decay",
        "rmsprop-centered-momentum-decay",
        "rmsprop-clip",
        "adagrad-lr-decay-decay",
        "adagrad-clip",
        "adam-amsgrad-decay",
        "adam-clip",
        "adamw-decay",
        "adamw-clip",
        "lamb-decay",
        "lamb-no-clip-decay",
        "lamb-trust-clip-decay",
        "lamb-phi-decay",
        "delta-bar-delta-decay",
        "delta-bar-delta-momentum-clip",
        "swats-decay",
        "swats-clip",
        "swats-switch-decay",
        "swats-switch-clip",
    )
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_world = pytest.mark.parametrize("world", WORLDS)


def _worker(rank: int, folder: Path, world: int) -> None:
    import torch

    results = {}
    with gloo_group(rank, folder, world):
        for layout, place in layouts(world).items():
            for case in CASES:
                expected = run(case.make, None)
                results[layout, case.name] = compare(run(case.make, place, partials=True), expected)
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[tuple[str, str], dict]]]:
    return {world: run_ranks(__file__, tmp_path_factory.mktemp(f"of{world}"), world) for world in WORLDS}


@each_world
@each_layout
@each_case
def test_equals_one_process(ranks: dict, world: int, layout: str, case: Case) -> None:
    for result in (r[layout, case.name] for r in ranks[world]):
        assert result["keys"]
        assert result["placed"]
        assert max(result["params"], result["states"]) < 2e-6
        assert result["norm"] < 1e-6
        assert result["switch"] < 1e-6


@each_world
@each_layout
@each_case
def test_every_rank_has_the_same(ranks: dict, world: int, layout: str, case: Case) -> None:
    first, *others = (r[layout, case.name] for r in ranks[world])
    for other in others:
        assert other["norms"] == first["norms"]
        assert other["switches"] == first["switches"]
        assert all((a == b).all() for a, b in zip(other["plain"], first["plain"], strict=True))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    _worker(int(sys.argv[1]), folder, int(folder.name.removeprefix("of")[0]))
