"""Master weights and averages of DTensors: those of one process, on both paths and through a checkpoint."""

from __future__ import annotations

import contextlib
import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import BF16, F16, F32
from ranks import gloo_group, run_ranks

import fusedopt
from fusedopt import native
from fusedopt.optim import _undo

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch has no gloo", allow_module_level=True)

from sharded import compare, distance, layouts, run, whole, whole_tensors
from sharded import place as placed

LAYOUTS = ("fsdp", "beside-plain")
CLASSES: dict[str, Any] = {
    "AdamW": fusedopt.AdamW,
    "SGD": lambda groups, **options: fusedopt.SGD(groups, lr=0.01, **options),
    "LAMB": fusedopt.LAMB,
}
DTYPES = {"bfloat16": BF16, "float16": F16}


def _compared(name: str, place: Any, dtype: torch.dtype) -> dict[str, Any]:
    def make(groups: Any) -> Any:
        return CLASSES[name](groups, master_weights=True, state_dtype=F32, ema_decay=0.5)

    ours, alone = run(make, place, dtype=dtype), run(make, None, dtype=dtype)
    fused = compare(ours, alone)
    other, params, _ = run(make, place, dtype=dtype)
    other.load_state_dict(copy.deepcopy(ours[0].state_dict()))  # the states themselves would be shared
    with torch.no_grad():
        for p, q in zip(params, ours[1], strict=True):
            p.copy_(q)
    for optimizer, its in ((ours[0], ours[1]), (other, params)):
        for i, (p, grad) in enumerate(zip(its, whole_tensors(9, dtype), strict=True)):
            p.grad = placed(grad, place(i, grad))
        if optimizer is other:
            with native():
                optimizer.step()
        else:
            optimizer.step()
    pairs = [
        *zip(other.exact_parameters(), ours[0].exact_parameters(), strict=True),
        *((other.state[p]["average"], ours[0].state[q]["average"]) for p, q in zip(params, ours[1], strict=True)),
    ]
    refused = False
    try:  # as nobody could have whole parameters gathered again
        with other.averaged_weights():
            pass
    except ValueError:
        refused = True
    kept = [whole(p).clone() for p in params]
    with other.averaged_weights(torch.nn.ParameterList(params)):
        averaged = max(distance(whole(p), whole(other.state[p]["average"])) for p in params)
    same = all(torch.equal(whole(p), q) for p, q in zip(params, kept, strict=True))
    return {
        "averages": (refused, averaged, same),
        "fused": fused,
        "plain": max(distance(a, whole(b)) for a, b in pairs),
        "paths": {e.path for e in other.explain()},
    }


def _in_one_memory(place: Any) -> dict[str, Any]:
    """Two parameters on the same shard, whose norms go over all processes."""
    weight = torch.ones(4, 4)
    params = [torch.nn.Parameter(placed(weight, place(0, weight)))]
    params.append(torch.nn.Parameter(params[0].data))
    optimizer = fusedopt.LAMB(params, lr=0.1, ema_decay=0.5)
    for p in params:
        p.grad = placed(weight, place(0, weight))
    message = ""
    try:
        optimizer.step()
    except RuntimeError as error:
        message = str(error)
    return {"message": message, "kept": bool((whole(params[0]) == 1).all()), "states": len(optimizer.state)}


def _copies(place: Any) -> list[int]:
    """How many of torch's steps keep copies: of two on usual shards, and with one more, of a state that is whole."""
    before = _undo._restored_on_error
    copies: list[Any] = []

    def counted(optimizer: Any, params: Any) -> Any:
        copies.append(params)
        return before(optimizer, params)

    _undo._restored_on_error = counted
    try:
        with native():
            optimizer, params, _ = run(fusedopt.AdamW, place, 2)
            usual = len(copies)
            optimizer.state[params[1]]["exp_avg"] = whole(optimizer.state[params[1]]["exp_avg"])
            with contextlib.suppress(RuntimeError):  # torch mixes no DTensor with a tensor
                optimizer.step()
    finally:
        _undo._restored_on_error = before
    return [usual, len(copies)]


def _worker(rank: int, folder: Path, world: int) -> None:
    with gloo_group(rank, folder, world):
        places = layouts(world)
        results: dict[Any, Any] = {
            (layout, name, kind): _compared(name, places[layout], dtype)
            for layout in LAYOUTS
            for name in CLASSES
            for kind, dtype in DTYPES.items()
        }
        results["copies"] = _copies(places["fsdp"])
        results["in one memory"] = _in_one_memory(places["fsdp"])
        torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run_ranks(__file__, tmp_path_factory.mktemp("of2"), 2, timeout=300)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", DTYPES)
def test_equals_one_process(ranks: list[dict[Any, Any]], layout: str, name: str, kind: str) -> None:
    for of_rank in ranks:
        result = of_rank[layout, name, kind]
        assert result["fused"]["keys"]
        assert result["fused"]["placed"]
        assert all(path == "fused" and "master weight" in reason for path, reason in result["fused"]["paths"])
        # Parameters to one rounding of theirs; of the rest of a master some bits more; averages in float32.
        assert result["fused"]["params"] < 0.01
        assert result["plain"] < 2e-5
        assert result["paths"] == {"torch"}
        refused, averaged, same = result["averages"]
        assert refused
        assert same
        assert averaged < 0.01


def test_no_copies_are_kept_of_usual_shards(ranks: list[dict[Any, Any]]) -> None:
    assert [of_rank["copies"] for of_rank in ranks] == [[0, 1]] * 2


def test_shards_in_one_memory_are_refused(ranks: list[dict[Any, Any]]) -> None:
    for of_rank in ranks:
        result = of_rank["in one memory"]
        assert "LAMB: parameters, states or gradients share memory" in result["message"]
        assert result["kept"]
        assert result["states"] == 0


if __name__ == "__main__":
    _worker(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
