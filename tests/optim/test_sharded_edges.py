"""DTensors off the beaten track: gradients that are missing or elsewhere, overflows, torch's path, other meshes.

Each check runs on four gloo processes, all in one set of them.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial as partial_of
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import BY_NAME
from ranks import run_ranks
from torch import nn

import fusedopt
from fusedopt.optim import _fused
from fusedopt.sharding import local

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from edges_of_shards import CHECKS, WITH_NORMS, WORLD, check
from sharded import (
    compare,
    distance,
    everyone,
    is_as_one_process,
    partial,
    place,
    run,
    run_checks,
    set_gradients,
    whole,
    whole_tensors,
)
from torch.distributed.tensor import DTensor, Partial, Replicate


@check
def a_partial_gradient_stays_as_it_is(places: dict[str, Any], rank: int) -> None:
    mesh, _ = places["fsdp"](0, None)
    p = nn.Parameter(place(torch.ones(4), (mesh, [Replicate()])))
    optimizer = fusedopt.SGD([p], lr=0.5, momentum=0.9)
    p.grad = grad = partial(torch.ones(4), mesh)
    optimizer.step()
    assert p.grad is grad
    assert grad.placements == (Partial(),)
    assert torch.equal(p.detach().to_local(), torch.full((4,), 0.5))
    assert optimizer.state[p]["momentum_buffer"].placements == (Replicate(),)


@check
def states_that_are_placed_otherwise(places: dict[str, Any], rank: int) -> None:
    expected = run(fusedopt.AdamW, None, steps=2)
    optimizer, params, _ = run(fusedopt.AdamW, places["fsdp"], steps=1)
    for p in params:
        state = optimizer.state[p]
        state["exp_avg"] = state["exp_avg"].redistribute(p.device_mesh, [Replicate()])
    set_gradients(params, 1, places["fsdp"])
    optimizer.step()
    found = compare((optimizer, params, []), expected)
    assert is_as_one_process(found)
    assert found["placed"]
    assert {path for path, _ in found["paths"]} == {"fused"}


@check
def a_parameter_that_is_a_partial_sum(places: dict[str, Any], rank: int) -> None:
    mesh, _ = places["fsdp"](0, None)
    for make in (fusedopt.LAMB, fusedopt.SWATS, lambda params: fusedopt.SGD(params, max_grad_norm=1.0)):
        p = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False))
        p.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False)
        with pytest.raises(RuntimeError, match="redistribute"):
            make([p]).step()
        assert torch.equal(p.to_local(), torch.ones(4))


@check
def versions_count(places: dict[str, Any], rank: int) -> None:
    for native in (False, True):
        optimizer, params, _ = run(fusedopt.LAMB, places["fsdp"], steps=1)
        tensors = [*params, *(optimizer.state[p]["exp_avg"] for p in params)]
        before = [(t._version, t._local_tensor._version) for t in tensors]
        with fusedopt.native() if native else nullcontext():
            optimizer.step()
        for t, (outer, inner) in zip(tensors, before, strict=True):
            assert t._version > outer
            assert t._local_tensor._version > inner


@check
def parameters_that_are_sharded_anew_between_steps(places: dict[str, Any], rank: int) -> None:
    for name in WITH_NORMS:
        expected = run(BY_NAME[name].make, None)
        optimizer, params, _ = run(BY_NAME[name].make, places["fsdp"], steps=2)
        for i, p in enumerate(params):
            where = places["hsdp"](i, p)
            state = optimizer.state.pop(p, {})
            params[i] = nn.Parameter(place(whole(p).detach(), where))
            moved = {k: v if k == "step" else place(whole(v), where) for k, v in state.items()}
            if moved:
                optimizer.state[params[i]] = moved
        optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = params[:2], params[2:]
        for step in (2, 3):
            set_gradients(params, step, places["hsdp"])
            optimizer.step()
        found = compare((optimizer, params, []), expected)
        assert is_as_one_process(found), (name, found)


@check
def a_step_that_is_refused_half_way_changes_nothing(places: dict[str, Any], rank: int) -> None:
    def too_large(optimizer: Any) -> None:
        optimizer.param_groups[1].update(lr=1e300, weight_decay=1e300)

    def plain_state(optimizer: Any) -> None:
        p = optimizer.param_groups[1]["params"][-1]
        optimizer.state[p] = {name: whole(v) if name != "step" else v for name, v in optimizer.state[p].items()}

    for name in ("sgd-nesterov-decay", "adam-clip", "adamw-decay", "lamb-decay", "lamb-no-clip-decay", "swats-decay"):
        for layout in ("fsdp", "beside-plain"):
            for native in (False, True):
                for spoil in (too_large, plain_state):
                    optimizer, params, _ = run(BY_NAME[name].make, places[layout], steps=1)
                    spoil(optimizer)
                    tensors = [*params, *(v for p in params for v in optimizer.state[p].values())]
                    before = [local(t).clone() for t in tensors]
                    with fusedopt.native() if native else nullcontext(), pytest.raises((RuntimeError, ValueError)):
                        optimizer.step()
                    same = [torch.equal(local(t), b) for t, b in zip(tensors, before, strict=True)]
                    assert all(same), (name, layout, native, spoil.__name__, same)


@check
def parameters_that_are_added_later(places: dict[str, Any], rank: int) -> None:
    for name in WITH_NORMS:
        results = []
        for sharded in True, False:
            where = [places["fsdp"](i, p) if sharded else None for i, p in enumerate(whole_tensors(-1))]
            params = [nn.Parameter(place(p, w)) for p, w in zip(whole_tensors(-1), where, strict=True)]
            optimizer, norms = BY_NAME[name].make([{"params": params[:2]}]), []
            for step in range(4):
                if step == 2:
                    optimizer.add_param_group({"params": params[2:]})
                known = [p for group in optimizer.param_groups for p in group["params"]]
                for p, grad, w in zip(known, whole_tensors(step), where, strict=False):
                    p.grad = place(grad, w)
                optimizer.step()
                norms.append(optimizer.grad_norm)
            results.append((optimizer, params, norms))
        assert is_as_one_process(compare(*results)), name


@check
def a_step_without_sums_asks_nobody(places: dict[str, Any], rank: int) -> None:
    """It is one call of the plan's, as of plain tensors, with the same bits as where Python looks at it in between."""
    asked = []

    def sharded_step(optimizer: Any, *args: Any) -> None:
        asked.append(optimizer)
        original(optimizer, *args)

    original = _fused.sharded_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fused, "sharded_step", sharded_step)
        for name in (
            "sgd-nesterov-decay",
            "rmsprop-decay",
            "adagrad-decay",
            "adamw-decay",
            "lamb-no-clip-decay",
            "swats",
        ):
            for layout in ("fsdp", "2d", "beside-plain"):
                has_sums = name in ("lamb-no-clip-decay", "swats")
                asked.clear()
                optimizer, params, _ = run(BY_NAME[name].make, places[layout])
                assert len(asked) in ([4] if has_sums else [0, 1]), (name, layout)  # the first step makes the states
                reasons = [e.reason for e in optimizer.explain()]
                assert ["hard" in r for r in reasons] == [isinstance(p, DTensor) for p in params], reasons
                if has_sums:
                    continue
                asked.clear()
                other, others, _ = run(partial_of(BY_NAME[name].make, max_grad_norm=1e30), places[layout])
                assert len(asked) == 4
                for p, q in zip(params, others, strict=True):
                    assert torch.equal(whole(p), whole(q)), (name, layout)
                    for key, value in optimizer.state[p].items():
                        assert torch.equal(whole(value), whole(other.state[q][key])), (name, layout, key)


@check
def clip_grad_norm(places: dict[str, Any], rank: int) -> None:
    found, expected = [], []
    for clip, norms in ((fusedopt.clip_grad_norm_, found), (nn.utils.clip_grad_norm_, expected)):
        params = [nn.Parameter(place(p, places["fsdp"](i, p))) for i, p in enumerate(whole_tensors(-1))]
        set_gradients(params, 0, places["fsdp"])
        norms += [whole(clip(params, 0.5)), *(whole(p.grad) for p in params)]
    assert max(map(distance, found, expected)) < 1e-6


@check
def fused_is_torchs_option(places: dict[str, Any], rank: int) -> None:
    expected = run(fusedopt.AdamW, None)
    found = compare(run(lambda groups: fusedopt.AdamW(groups, fused=True), places["fsdp"]), expected)
    assert is_as_one_process(found)
    assert {path for path, _ in found["paths"]} == {"fused"}


@check
def a_switch_survives_another_mesh(places: dict[str, Any], rank: int) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    make = BY_NAME["swats-switch-decay"].make
    folder = everyone(str(Path(sys.argv[2]) / "checkpoint"))[0]

    expected = run(make, None)
    optimizer, params, _ = run(make, places["fsdp"], steps=2)
    assert optimizer.phase == ["sgd", "sgd"]
    values = [whole(p).detach() for p in params]
    dcp.save({"optimizer": get_optimizer_state_dict(nn.ParameterList(params), optimizer)}, checkpoint_id=folder)
    other = [nn.Parameter(place(v, places["2d"](i, v))) for i, v in enumerate(values)]
    fresh = make([{"params": other[:2]}, {"params": other[2:], "lr": 0.02}])
    loaded = get_optimizer_state_dict(nn.ParameterList(other), fresh)
    dcp.load({"optimizer": loaded}, checkpoint_id=folder)
    set_optimizer_state_dict(nn.ParameterList(other), fresh, loaded)
    assert fresh.phase == ["sgd", "sgd"]
    for step in (2, 3):
        set_gradients(other, step, places["2d"])
        fresh.step()
    assert is_as_one_process(compare((fresh, other, []), expected))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return run_ranks(__file__, tmp_path_factory.mktemp("edges"), WORLD, timeout=300, apart=True)


@pytest.mark.parametrize("name", CHECKS)
def test_edge(ranks: list[dict[str, str]], name: str) -> None:
    assert [result[name] for result in ranks] == [""] * WORLD


if __name__ == "__main__":
    run_checks(CHECKS, int(sys.argv[1]), Path(sys.argv[2]), WORLD)
