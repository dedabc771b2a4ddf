"""Steps within the backward pass where parameters are sharded: wrappers that reduce gradients, and FSDP2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from backward_steps import Net, adam, assert_equal
from ranks import gloo_group, one_process, run_ranks
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusedopt
from fusedopt import step_in_backward

# Without the pretended GPU, which is not seen where autograd runs hooks: a build for the executor steps on its kernels.
pytestmark = [pytest.mark.steps, pytest.mark.usefixtures("one_thread"), pytest.mark.below_python]


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
def test_wrappers_that_reduce_gradients_are_refused(tmp_path: Path) -> None:
    with one_process(tmp_path):
        model = Net()
        optimizer = adam(model.parameters())
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        with pytest.raises(ValueError, match=r"DistributedDataParallel.*fully_shard"):
            step_in_backward(optimizer)
        elsewhere = adam(Net().parameters())
        step_in_backward(elsewhere).remove()
        del wrapped
        steps = step_in_backward(optimizer)
        with pytest.raises(ValueError, match="stepped in the backward pass, and DistributedDataParallel"):
            DistributedDataParallel(model)
        DistributedDataParallel(Net())
        steps.remove()
        DistributedDataParallel(model)
        for use_orig_params in (False, True):
            flat = FullyShardedDataParallel(Net(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
            with pytest.raises(ValueError, match="FullyShardedDataParallel"):
                step_in_backward(adam(flat.parameters()))


def test_shards_of_fsdp2_step_in_the_backward_pass(tmp_path: Path) -> None:
    for result in run_ranks(__file__, tmp_path, 2):
        assert result["stepped"]
        assert_equal(result["in backward"], result["ordinary"])
        assert "go over the processes" in result["refusal"]


def sharded() -> nn.Module:
    """A model whose layers are sharded each by itself, and one of them used twice."""
    torch.manual_seed(0)
    first, *others = (nn.Linear(8, 8) for _ in range(3))
    for module in (first, *others):
        fully_shard(module)
    model = nn.Sequential(first, *others, first)
    fully_shard(model)
    return model


def run_rank(rank: int, folder: Path, world: int) -> None:
    results: dict[str, Any] = {}
    x = torch.arange(8.0).reshape(1, 8) + rank
    with gloo_group(rank, folder, world):
        for name in ("ordinary", "in backward"):
            model = sharded()
            optimizer = adam(model.parameters())
            if name == "in backward":
                step_in_backward(optimizer)
            for _ in range(4):
                optimizer.zero_grad()
                model(x).square().sum().backward()
                results["stepped"] = all(p.grad is None for p in model.parameters())
                optimizer.step()
            results[name] = [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="backward pass") as refused:
            step_in_backward(fusedopt.LAMB(model.parameters(), max_grad_norm=None))
        results["refusal"] = str(refused.value)
        torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
