"""FSDP2, HSDP, tensor and sequence parallel models train as one process does, over gloo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import BY_NAME, Case
from ranks import gloo_group, run_ranks
from torch import Tensor, nn

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from sharded import compare
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

WORLDS = (2, 4)
ENGINES = ("fsdp2", "fsdp2-dim1", "hsdp", "tensor-parallel", "sequence-parallel", "2d")
# Every class is in test_sharded.py, on the placements that these engines make.
CASES = [BY_NAME[name] for name in ("sgd-nesterov-clip-decay", "adamw-clip", "lamb-decay", "swats-switch-clip")]
STEPS, LAMB_STEPS = 3, 60


class Net(nn.Module):
    """What tensor and sequence parallelism know how to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 20), nn.Linear(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.down(torch.tanh(self.up(self.norm(x)))))
        return y


def _fsdp2(**options: Any) -> Callable[[nn.Module, Any], Any]:
    def wrap(model: Any, mesh: Any) -> Any:
        for layer in (model.up, model.down):
            fully_shard(layer, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        return model

    return wrap


def _parallel(model: nn.Module, mesh: Any, *, sequence: bool) -> nn.Module:
    plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    if sequence:
        plan = {
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Shard(1)),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
        whole_input = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),))
        model = parallelize_module(model, mesh, {"norm": whole_input})
    return parallelize_module(model, mesh, plan)


def engines(world: int) -> dict[str, tuple[Callable[[nn.Module], nn.Module], int, int]]:
    """By name, what makes a model parallel, and which of how many parts of a batch this process gets."""
    line = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "model"))
    rank, outer = dist.get_rank(), square.get_local_rank("data")
    dim1 = _fsdp2(shard_placement_fn=lambda p: Shard(p.dim() - 1))
    return {
        "fsdp2": (lambda m: _fsdp2()(m, line), rank, world),
        "fsdp2-dim1": (lambda m: dim1(m, line), rank, world),
        "hsdp": (lambda m: _fsdp2()(m, square), rank, world),
        "tensor-parallel": (lambda m: _parallel(m, line, sequence=False), 0, 1),
        "sequence-parallel": (lambda m: _parallel(m, line, sequence=True), 0, 1),
        "2d": (
            lambda m: _fsdp2()(_parallel(m, square["model"], sequence=False), square["data"]),
            outer,
            world // 2,
        ),
    }


def train(make: Any, engine: Any, steps: int, dtype: torch.dtype = torch.float64) -> Any:
    """Trains on batches that are shared among the processes; returns what `compare` takes."""
    wrap, part, parts = engine or ((lambda m: m), 0, 1)
    torch.manual_seed(0)
    model = wrap(Net().to(dtype))
    optimizer, norms = make(list(model.parameters())), []
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(8, 4, 8, generator=rng, dtype=torch.float64).to(dtype)
        targets = torch.randn(8, 4, 3, generator=rng, dtype=torch.float64).to(dtype)
        optimizer.zero_grad()
        outputs = model(inputs.chunk(parts)[part])
        nn.functional.mse_loss(outputs, targets.chunk(parts)[part]).backward()
        optimizer.step()
        norms.append(optimizer.grad_norm)
    return optimizer, list(model.parameters()), norms


def _worker(rank: int, folder: Path, world: int) -> None:
    import fusedopt

    results = {}
    with gloo_group(rank, folder, world):
        found = engines(world)
        for case in CASES:
            expected = train(case.make, None, STEPS)
            for name, engine in found.items():
                results[name, case.name] = compare(train(case.make, engine, STEPS), expected)
        expected = train(fusedopt.LAMB, None, LAMB_STEPS, torch.float32)
        results["lamb"] = compare(train(fusedopt.LAMB, found["fsdp2"], LAMB_STEPS, torch.float32), expected)
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[Any, dict[str, Any]]]]:
    return {world: run_ranks(__file__, tmp_path_factory.mktemp(f"of{world}"), world, timeout=300) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_trains_as_one_process(ranks: dict, world: int, engine: str, case: Case) -> None:
    for result in (r[engine, case.name] for r in ranks[world]):
        assert result["keys"]
        assert result["placed"]
        assert {path for path, _ in result["paths"]} == {"fused"}
        assert max(result["params"], result["states"], result["norm"], result["switch"]) < 1e-9


@pytest.mark.parametrize("world", WORLDS)
def test_lamb_with_default_arguments_equals_one_process(ranks: dict, world: int) -> None:
    assert all(result["lamb"]["params"] < 1e-6 for result in ranks[world])


@pytest.mark.parametrize("world", WORLDS)
def test_explain_says_which_shard(ranks: dict, world: int) -> None:
    for rank, result in enumerate(ranks[world]):
        for path, reason in result["fsdp2", "adamw-clip"]["paths"]:
            assert path == "fused"
            assert reason.endswith(f"shard {rank + 1} of {world}, Shard(0)")
        reasons = [reason for _, reason in result["sequence-parallel", "adamw-clip"]["paths"]]
        assert reasons[0].endswith(", Replicate")
        assert reasons[2].endswith(f"shard {rank + 1} of {world}, Shard(0)")


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    _worker(int(sys.argv[1]), folder, int(folder.name.removeprefix("of")[0]))
