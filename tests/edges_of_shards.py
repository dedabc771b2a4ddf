"""Checks of DTensors on four gloo processes, by name: what steps do with gradients, norms and memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from cases import BY_NAME
from sharded import (
    compare,
    is_as_one_process,
    is_same_everywhere,
    partial,
    place,
    run,
    set_gradients,
    switches_of,
    whole_tensors,
)
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

import fusedopt

WORLD = 4
CHECKS: dict[str, Callable[[dict[str, Any], int], None]] = {}
WITH_NORMS = ("sgd-clip-decay", "adamw-clip", "lamb-decay", "swats-clip", "swats-switch-clip")


def check(function: Callable[[dict[str, Any], int], None]) -> Callable[[dict[str, Any], int], None]:
    CHECKS[function.__name__] = function
    return function


@check
def a_gradient_is_missing_on_one_process(places: dict[str, Any], rank: int) -> None:
    for name in WITH_NORMS:
        case, grads, norms = BY_NAME[name], whole_tensors(0), []
        params = [nn.Parameter(place(p, places["fsdp"](i, p))) for i, p in enumerate(whole_tensors(-1))]
        optimizer = case.make(params)
        for _ in range(3):
            for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
                p.grad = None if rank == 1 and i in (0, 4) else place(grad, places["fsdp"](i, grad))
            optimizer.step()
            norms.append(float(optimizer.grad_norm))
        squares = sum(float(g.double().square().sum()) for g in grads)
        lost = sum(float(grads[i].chunk(WORLD)[1].double().square().sum()) for i in (0, 4))
        assert abs(norms[0] / math.sqrt(squares - lost) - 1) < 1e-6
        assert is_same_everywhere((norms, switches_of(optimizer)))
        if rank == 1:
            assert params[0] not in optimizer.state


@check
def no_gradient_at_all_on_one_process(places: dict[str, Any], rank: int) -> None:
    for name in WITH_NORMS:
        params = [nn.Parameter(place(p, places["fsdp"](i, p))) for i, p in enumerate(whole_tensors(-1))]
        optimizer = BY_NAME[name].make(params)
        for step in range(3):
            for i, (p, grad) in enumerate(zip(params, whole_tensors(step), strict=True)):
                p.grad = None if rank == 2 else place(grad, places["fsdp"](i, grad))
            optimizer.step()
        assert is_same_everywhere(float(optimizer.grad_norm))
        assert is_same_everywhere(switches_of(optimizer))


@check
def torchs_path(places: dict[str, Any], rank: int) -> None:
    for name in (*WITH_NORMS, "sgd-nesterov-decay", "adam-amsgrad-decay"):
        expected = run(BY_NAME[name].make, None)
        for layout in ("fsdp", "2d", "tensor-parallel", "beside-plain"):
            with fusedopt.native():
                found = compare(run(BY_NAME[name].make, places[layout], partials=True), expected)
            assert is_as_one_process(found), (name, layout, found)
            assert found["placed"], name
            assert {path for path, _ in found["paths"]} == {"torch"}


@check
def differentiable(places: dict[str, Any], rank: int) -> None:
    for name in ("lamb-decay", "swats-clip"):
        expected = run(BY_NAME[name].make, None, steps=2)

        def make(groups: Any, case: Any = BY_NAME[name]) -> Any:
            return case.make(groups, differentiable=True)

        found = compare(run(make, places["fsdp"], steps=2, requires_grad=False), expected)
        assert is_as_one_process(found), (name, found)


@check
def memory_that_is_not_dense_on_some_processes(places: dict[str, Any], rank: int) -> None:
    mesh, _ = places["fsdp"](0, None)
    for name in WITH_NORMS:
        case = BY_NAME[name]

        def make(*, sharded: bool) -> list[nn.Parameter]:
            params = whole_tensors(-1)
            if not sharded:
                return [nn.Parameter(p) for p in params]
            wide = torch.empty(2, 12) if rank % 2 else torch.empty(2, 6)
            local = wide[:, :: 2 if rank % 2 else 1].copy_(params[0].chunk(WORLD)[rank])
            first = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
            return [nn.Parameter(first), *(nn.Parameter(place(p, (mesh, [Shard(0)]))) for p in params[1:])]

        results = []
        for sharded in (True, False):
            params = make(sharded=sharded)
            optimizer, norms = case.make(params), []
            for step in range(3):
                for p, grad in zip(params, whole_tensors(step), strict=True):
                    p.grad = place(grad, (mesh, [Shard(0)])) if sharded else grad
                optimizer.step()
                norms.append(optimizer.grad_norm)
            results.append((optimizer, params, norms))
        found = compare(*results)
        assert is_as_one_process(found), (name, found)
        assert found["paths"][0][0] == ("torch" if rank % 2 else found["paths"][1][0])


@check
def overflow_on_one_process(places: dict[str, Any], rank: int) -> None:
    for name in (*WITH_NORMS, "adam-amsgrad-decay"):
        for layout in ("fsdp", "two-meshes"):
            params = [nn.Parameter(place(p, places[layout](i, p))) for i, p in enumerate(whole_tensors(-1))]
            optimizer = BY_NAME[name].make(params, fused=True)  # otherwise the scaler decides, mesh by mesh
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            scaler.scale(torch.ones(()))
            for step in range(3):
                before = [p.detach().to_local().clone() for p in params]
                set_gradients(params, step, places[layout], scale=4.0)
                if step == 1 and rank == 3:
                    params[4].grad.to_local()[0, 0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
                moved = any(not torch.equal(p.detach().to_local(), b) for p, b in zip(params, before, strict=True))
                assert moved == (step != 1), (name, layout, step)
                if layout == "fsdp":  # torch's scaler asks the mesh of the first gradient alone
                    assert is_same_everywhere(scaler.get_scale())


@check
def a_collective_that_is_under_way(places: dict[str, Any], rank: int) -> None:
    mesh, _ = places["fsdp"](0, None)
    expected = run(fusedopt.LAMB, None, steps=1)
    params = [nn.Parameter(place(p, (mesh, [Replicate()]))) for p in whole_tensors(-1)]
    optimizer = fusedopt.LAMB([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}])
    for p, grad in zip(params, whole_tensors(0), strict=True):
        p.grad = partial(grad, mesh).redistribute(mesh, [Replicate()], async_op=True)
    optimizer.step()
    assert is_as_one_process(compare((optimizer, params, [optimizer.grad_norm]), expected))
    assert {e.path for e in optimizer.explain()} == {"fused"}
