"""DTensor parameters of any mesh: the result of one process, on real processes over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import BY_NAME, Case
from ranks import environment, gloo_group, run_ranks

import fusedopt
from fusedopt.gradients import GradientNoise

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from sharded import compare, distance, layouts, run, whole

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
        "nadam-decay",
        "asgd-averages-decay",
        "lion-clip",
        "lars-decay",
        "lars-exclude-decay",
        "lars-no-momentum-clip",
        "swats-decay",
        "swats-clip",
        "swats-switch-decay",
        "swats-switch-clip",
    )
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_world = pytest.mark.parametrize("world", WORLDS)


def _noisy(place: Any) -> list[Any]:
    """The gradients that a step with noise was given."""
    gradients: list[Any] = []

    def make(groups: Any) -> Any:
        optimizer = fusedopt.SGD(groups, lr=0.1)
        GradientNoise(optimizer, eta=1.0, seed=3)
        optimizer.register_step_post_hook(
            lambda *_: gradients.extend(whole(p.grad) for group in optimizer.param_groups for p in group["params"])
        )
        return optimizer

    run(make, place, steps=2, partials=True)
    return gradients


def _captured(place: Any) -> fusedopt.gradients.History:
    model = torch.nn.Module()

    def make(groups: Any) -> Any:
        for i, p in enumerate([*groups[0]["params"], *groups[1]["params"]]):
            model.register_parameter(f"w{i}", p)
        recorder = fusedopt.capture(model, max_values=100)
        recorder.__enter__()
        optimizer = fusedopt.Adam(groups)
        optimizer.captured = recorder
        return optimizer

    optimizer, _, _ = run(make, place, partials=True)
    optimizer.captured.__exit__(None, None, None)
    return optimizer.captured.history


def _watched(place: Any) -> dict[str, float]:
    noisy, captured, expected = _noisy(place), _captured(place), _captured(None)
    kinds = ("gradients", "parameters")
    return {
        "noise": max(map(distance, noisy, _noisy(None))),
        **{k: max(distance(getattr(captured, k)[n], v) for n, v in getattr(expected, k).items()) for k in kinds},
    }


def _worker(rank: int, folder: Path, world: int) -> None:
    results: dict[Any, Any] = {}
    with gloo_group(rank, folder, world):
        expected = {case.name: run(case.make, None) for case in CASES}
        for layout, place in layouts(world).items():
            results[layout] = _watched(place)
            for case in CASES:
                results[layout, case.name] = compare(run(case.make, place, partials=True), expected[case.name])
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[tuple[str, str], dict]]]:
    return {
        world: run_ranks(__file__, tmp_path_factory.mktemp(f"of{world}"), world, timeout=300, apart=True)
        for world in WORLDS
    }


@each_world
@each_layout
@each_case
def test_equals_one_process(ranks: dict, world: int, layout: str, case: Case) -> None:
    for result in (r[layout, case.name] for r in ranks[world]):
        assert result["keys"]
        assert result["placed"]
        assert {path for path, _ in result["paths"]} == {"fused"}
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


@each_world
@each_layout
@pytest.mark.parametrize("what", ["noise", "gradients", "parameters"])
def test_noise_and_records_are_those_of_one_process(ranks: dict, world: int, layout: str, what: str) -> None:
    assert all(r[layout][what] < 2e-6 for r in ranks[world])


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    _worker(int(sys.argv[1]), folder, int(folder.name.removeprefix("of")[0]))


def test_dtensors_are_imported_by_those_who_use_them() -> None:
    script = (
        "import sys, torch, fusedopt; print('torch.distributed.tensor' in sys.modules)"  # torch's first step imports it
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "False"
