"""DTensor parameters for the tests of shards: how they are laid out, and a comparison with one process."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import gloo_group
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

# Of the first dimension there are 4 parts with and without remainder, parts that are empty on some processes, and one
# tensor that is larger than a chunk of the engine.
SHAPES = [(8, 6), (5, 3), (3,), (1, 2), (130, 131), (4, 4)]
STEPS = 4

Place = Callable[[int, Tensor], Any]
"""The mesh and the placements of the parameter of that index; None of one that stays plain."""


def layouts(world: int) -> dict[str, Place]:
    """By name, how a model's parameters are laid out over all processes."""
    line = init_device_mesh("cpu", (world,))
    square = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("outer", "inner"))
    kinds = [[Shard(0)], [Shard(1)], [Replicate()]]
    two_dims = [[Shard(0), Shard(1)], [_StridedShard(0, split_factor=2), Shard(0)], [Shard(0), Replicate()]]
    return {
        "fsdp": lambda i, p: (line, [Shard(0)]),
        "fsdp-dim1": lambda i, p: (line, [Shard(p.dim() - 1)]),
        "hsdp": lambda i, p: (square, [Replicate(), Shard(0)]),
        "tensor-parallel": lambda i, p: (line, kinds[i % 3] if p.dim() > 1 else [Shard(0)]),
        "2d": lambda i, p: (square, two_dims[i % 3] if p.dim() > 1 else [Shard(0), Replicate()]),
        "beside-plain": lambda i, p: (line, [Shard(0)]) if i % 2 else None,
        "two-meshes": lambda i, p: (line, [Shard(0)]) if i % 2 else (square, [Shard(0), Replicate()]),
    }


def whole_tensors(step: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Tensor]:
    """Parameters (step -1) or gradients, the same on every process."""
    rng = torch.Generator().manual_seed(step + 1)
    return [(torch.randn(shape, generator=rng) * scale).to(dtype) for shape in SHAPES]


def place(whole: Tensor, where: Any) -> Tensor:
    """What a process has of a tensor, cut without communication."""
    if where is None:
        return whole.clone()
    mesh, placements = where
    return distribute_tensor(whole.clone(), mesh, placements, src_data_rank=None)


def set_gradients(params: list[Any], step: int, where: Place, scale: float = 1.0) -> None:
    """Gives the parameters the gradients of a step, placed as these layouts have them."""
    for i, (p, grad) in enumerate(zip(params, whole_tensors(step, scale=scale), strict=True)):
        p.grad = place(grad, where(i, grad))


def partial(whole: Tensor, mesh: Any) -> Tensor:
    """A gradient as a sum that is still to be taken: every process has a part, all different."""
    rank, world = mesh.get_local_rank(), mesh.size()
    weight = 2.0 * (rank + 1) / (world * (world + 1))
    return DTensor.from_local(whole * weight, mesh, [Partial()], run_check=False)


def whole(value: Any) -> Any:
    """A tensor as one process would have it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def run(make: Any, place_of: Place | None, steps: int = STEPS, *, partials: bool = False, **options: Any) -> Any:
    """Trains, and returns the optimizer and its parameters; without `place_of` as one process does."""
    dtype = options.get("dtype", torch.float32)
    where = [place_of(i, p) if place_of else None for i, p in enumerate(whole_tensors(-1))]
    params = [nn.Parameter(place(p, w)) for p, w in zip(whole_tensors(-1, dtype), where, strict=True)]
    for p in params:
        p.requires_grad_(options.get("requires_grad", True))
    optimizer = make([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}])
    norms = []
    for step in range(steps):
        for p, grad, w in zip(params, whole_tensors(step, dtype), where, strict=True):
            is_sum = partials and w is not None and w[1] == [Replicate()]
            p.grad = partial(grad, w[0]) if is_sum else place(grad, w)
        optimizer.step()
        norms.append(optimizer.grad_norm)
    return optimizer, params, norms


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference of two tensors, relative to the second's largest value."""
    ours, theirs = whole(ours).detach().double(), theirs.detach().double()
    if not theirs.numel():
        return 0.0
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3))


def compare(ours: Any, theirs: Any) -> dict[str, Any]:
    """How far two optimizers that have run are apart, in everything that a user can see."""
    (opt, params, norms), (reference, expected, expected_norms) = ours, theirs
    states = [
        distance(opt.state[p][name], value)
        for p, q in zip(params, expected, strict=True)
        for name, value in reference.state[q].items()
    ]
    keys = [set(opt.state[p]) == set(reference.state[q]) for p, q in zip(params, expected, strict=True)]
    placed = [
        not isinstance(p, DTensor) or v.dim() == 0 or (type(v) is DTensor and v.placements == p.placements)
        for p in params
        for v in opt.state[p].values()
    ]
    switches = [
        distance(group["switch"], other["switch"])
        for group, other in zip(opt.param_groups, reference.param_groups, strict=True)
        if "switch" in group
    ]
    last = expected_norms[len(expected_norms) - len(norms) :]
    known = [(a, b) for a, b in zip(norms, last, strict=True) if a is not None]
    return {
        "params": max(distance(p, q) for p, q in zip(params, expected, strict=True)),
        "states": max(states, default=0.0),
        "keys": all(keys),
        "placed": all(placed),
        "switch": max(switches, default=0.0),
        "norm": max((abs(float(a) / float(b) - 1) for a, b in known), default=0.0),
        "norms": [None if n is None else float(n) for n in norms],
        "switches": [group["switch"].tolist() for group in opt.param_groups if "switch" in group],
        "plain": [p.detach().clone() for p in params if not isinstance(p, DTensor)],
        "paths": [(e.path, e.reason) for e in opt.explain()],
    }


def everyone(value: Any) -> list[Any]:
    """That of every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_same_everywhere(value: Any) -> bool:
    values = everyone(value)
    return all(other == values[0] for other in values)


def switches_of(optimizer: Any) -> list[list[float]]:
    return [group["switch"].tolist() for group in optimizer.param_groups if "switch" in group]


def is_as_one_process(result: dict[str, Any]) -> bool:
    return max(result["params"], result["states"], result["norm"], result["switch"]) < 2e-6


def run_checks(checks: dict[str, Callable[[dict[str, Any], int], None]], rank: int, folder: Path, world: int) -> None:
    """Runs each on this process, and leaves in the folder what came of it: nothing, or a traceback."""
    results = {}
    with gloo_group(rank, folder, world):
        places = layouts(world)
        for name, function in checks.items():
            try:
                function(places, rank)
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()
            torch.save(results, folder / f"{rank}.pt")
            dist.barrier()
