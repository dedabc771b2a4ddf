"""A launch that waits in a GPU's full queue stops no other thread of Python, and no such thread disturbs the step."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gpu
import pytest
import torch
import torch.distributed as dist
from cases import BY_NAME
from torch import Tensor, nn

from fusedopt import _C

pytestmark = pytest.mark.steps

if not gpu.ON_CPU:
    pytest.skip("the queue of a real GPU cannot be made full; make test runs this", allow_module_level=True)


@contextmanager
def full_queue(meddle: Callable[[], object]) -> Iterator[None]:
    """Inside, launches wait until another thread lets them go, which calls `meddle` before the first."""
    over, waited = threading.Event(), 0

    def let_all_go() -> None:
        nonlocal waited
        while not over.wait(0.001):
            if _C.executor.stalled():
                if not waited:
                    meddle()
                waited += 1
                _C.executor.let_go()

    thread = threading.Thread(target=let_all_go)
    _C.executor.stall()
    thread.start()
    try:
        yield
    finally:
        in_vain = _C.executor.unstall()
        over.set()
        thread.join()
    assert in_vain == 0
    assert waited > 0


def stepped(optimizer: Any, params: list[Tensor], *, disturb: bool) -> list[Tensor]:
    """The parameters after a step; to disturb it is to take away and overwrite its operands while it waits."""
    lost: list[bool] = []
    scribbled: list[Tensor] = []

    def take_away() -> None:
        for p in params:
            assert p.grad is not None
            state = {name: v for name, v in optimizer.state[p].items() if isinstance(v, Tensor)}
            operands = list(map(weakref.ref, (p.grad, *state.values())))
            p.grad = None
            optimizer.state[p].update({name: v.clone() for name, v in state.items()})
            del state
            lost.extend(ref() is None for ref in operands)
        scribbled.extend(torch.full_like(p, torch.nan) for p in params for _ in range(8))

    for p in params:
        p.grad = p.detach().square()
    if disturb:
        with full_queue(take_away):
            optimizer.step()
        assert not any(lost)
    else:
        optimizer.step()
    return [p.detach() for p in params]


def values() -> list[Tensor]:
    return [torch.linspace(-1, 1, n, device=gpu.DEVICE) for n in (5000, 3, 20_000)]


@pytest.mark.parametrize("mode", ["plain", "scaled", "capturable"])
@pytest.mark.parametrize("before", [0, 1], ids=["first step", "second step"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "adagrad-clip", "lamb", "swats"])
def test_other_threads_run_while_a_launch_waits(name: str, before: int, mode: str) -> None:
    results = []
    for disturb in False, True:
        params = [nn.Parameter(value) for value in values()]
        optimizer: Any = BY_NAME[name].make(params)
        optimizer.param_groups[0]["capturable"] = mode == "capturable"
        if mode == "scaled":
            optimizer.grad_scale = torch.full((), 2.0, device=gpu.DEVICE)
            optimizer.found_inf = torch.zeros((), device=gpu.DEVICE)
        for _ in range(before):
            stepped(optimizer, params, disturb=False)
        results.append(stepped(optimizer, params, disturb=disturb))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.fixture
def one_of_two_processes() -> Iterator[None]:
    """The other one holds nothing but zeros."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_of_two_processes")
@pytest.mark.parametrize("name", ["adamw", "adamw-clip", "lamb", "swats-switch-clip"])
def test_other_threads_run_while_a_launch_for_shards_waits(name: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh, results = init_device_mesh("cpu", (2,)), []
    for disturb in False, True:
        shards = [DTensor.from_local(value, mesh, [Shard(0)], run_check=False) for value in values()]
        params = [nn.Parameter(shard) for shard in shards]
        results.append(stepped(BY_NAME[name].make(params), params, disturb=disturb))
    torch.testing.assert_close(*([p.to_local() for p in result] for result in results), rtol=0, atol=0)
