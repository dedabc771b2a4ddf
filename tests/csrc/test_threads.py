"""Results do not depend on the number of threads, and large steps use the threads that torch is given."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import BF16, BY_NAME, DTYPES, F32, FAST_CASES, Case, dtype_id
from torch import Tensor

import fusedopt
from fusedopt.optim import _fused

pytestmark = pytest.mark.usefixtures("threads")

SIZES = (70_001, 5, 0, 40_000, 2 * 16 * 1024 + 3, 300)  # beyond the size up to which a step is serial


def trained(case: Case, dtype: torch.dtype, threads: int) -> list[Tensor]:
    """Parameters, states and gradient norms after three steps."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)

    def numbers() -> list[Tensor]:
        return [torch.randn(n, generator=generator).to(dtype) for n in SIZES]

    params = numbers()
    optimizer, norms = case.make(params), []
    for _ in range(3):
        for p, grad in zip(params, numbers(), strict=True):
            p.grad = grad
        optimizer.step()
        norms += [optimizer.grad_norm] if case.max_grad_norm else []
    return params + [optimizer.state[p][key] for p in params for key in case.states] + norms


@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_id)
@pytest.mark.parametrize("case", FAST_CASES, ids=str)
def test_same_bits_with_any_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    alone = trained(case, dtype, 1)
    for threads in (2, 3):
        for x, y in zip(alone, trained(case, dtype, threads), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("name", ["lamb-fast", "adam-clip-fast"])
def test_same_norms_with_any_number_of_threads(name: str, dtype: torch.dtype) -> None:
    case = replace(BY_NAME[name], max_grad_norm=0.1)
    runs = [trained(case, dtype, threads) for threads in (1, 2, 3, 2)]
    for run in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], run, strict=True))


def untouched(numel: int = 4 * 2**20) -> Tensor:
    """Zeros in pages that the system has not mapped yet."""
    memory = mmap.mmap(-1, 4 * numel, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)


def share_of_others(f: Callable[[Tensor], object]) -> float:
    """Which part of a tensor's memory is first touched by other threads than this one while `f(tensor)` runs.

    The system maps a page when it is first touched, and counts for each thread how many it had mapped. That tells
    who did the work, and does not depend on how busy the machine is.
    """

    def faults() -> dict[str, int]:
        stats = {task.name: (task / "stat").read_text() for task in Path("/proc/self/task").iterdir()}
        return {thread: int(stat.rpartition(")")[2].split()[7]) for thread, stat in stats.items()}

    sgd_step(untouched(100_000))  # what torch imports and allocates on its first step is not the question
    p = untouched()
    before = faults()
    f(p)
    counts = {thread: count - before.get(thread, 0) for thread, count in faults().items()}
    mine = counts.pop(str(threading.get_native_id()))
    others = sum(counts.values())
    assert mine + others > 1000
    return others / (mine + others)


def sgd_step(p: Tensor) -> None:
    p.grad = untouched(p.numel())
    fusedopt.SGD([p], lr=0.1).step()


def test_a_large_step_uses_the_threads_it_may() -> None:
    torch.set_num_threads(2)
    assert 0.25 < share_of_others(sgd_step) < 0.75
    torch.set_num_threads(4)
    assert share_of_others(sgd_step) > 0.5


def test_one_thread_means_one() -> None:
    torch.set_num_threads(1)
    assert share_of_others(sgd_step) < 0.02


def test_a_small_step_stays_on_one_thread() -> None:
    torch.set_num_threads(2)
    assert share_of_others(lambda p: [sgd_step(part) for part in p.split(80_000)]) < 0.02


def test_serial_inside_another_parallel_region() -> None:
    """As when a step runs in a callback of a library that is parallel itself, with the runtime that torch uses."""
    maps = Path("/proc/self/maps").read_text().split()
    openmp = ctypes.CDLL(next(path for path in maps if "libgomp" in path or "libomp" in path))

    in_parallel = []

    def in_region(p: Tensor) -> None:
        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def body(_: object) -> None:
            if openmp.omp_get_thread_num() == 0:
                in_parallel.append(openmp.omp_in_parallel())
                sgd_step(p)

        openmp.GOMP_parallel(body, None, 2, 0)

    torch.set_num_threads(2)
    assert share_of_others(in_region) < 0.02
    assert in_parallel == [1]


# ---- Threads of Python's that share an optimizer ----


@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "lamb-no-clip", "swats", "adamw-clip"])
def test_threads_that_share_an_optimizer_take_turns(name: str) -> None:
    """Above the size at which a step lets other threads of Python run; as many steps by one thread give the same."""
    case = BY_NAME[name]
    numel = (1 << 20) + 5
    start, grad = torch.linspace(-1, 1, numel), torch.linspace(1, 2, numel)
    results = []
    for threads in 1, 4:
        p, q = start.clone().requires_grad_(), torch.ones(7, requires_grad=True)
        optimizer = case.make([p, q])
        p.grad, q.grad = grad.clone(), torch.ones(7)
        errors: list[BaseException] = []

        def steps(count: int, optimizer: Any = optimizer, errors: list[BaseException] = errors) -> None:
            try:
                for _ in range(count):
                    optimizer.step()
            except BaseException as error:
                errors.append(error)

        workers = [threading.Thread(target=steps, args=(8 // threads,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not errors
        results.append((p, q, [dict(optimizer.state[x]) for x in (p, q)]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


class Stepping(Tensor):
    """A tensor whose first operation calls step(), as a hook of another library might."""

    optimizer: Any = None
    asked = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if cls.optimizer is not None and "add" in func.__name__:
            cls.asked += 1
            cls.optimizer.step()
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_step_inside_the_same_step_is_refused() -> None:
    p, q = torch.ones(4, requires_grad=True), torch.ones(4).as_subclass(Stepping).requires_grad_()
    optimizer = fusedopt.SGD([p, q[::2].detach().requires_grad_(), q], lr=0.5)
    p.grad, q.grad = torch.ones(4), torch.ones(4)
    with fusedopt.native():
        Stepping.optimizer = optimizer
        try:
            with pytest.raises(RuntimeError, match="called from within the same optimizer's step"):
                optimizer.step()
        finally:
            Stepping.optimizer = None
    assert Stepping.asked == 1
    before = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(p.detach(), before - 0.5)


def test_a_step_inside_a_closure_or_a_hook_runs() -> None:
    """As with torch's class: the outer step has not begun, or is over."""
    results = []
    for cls in fusedopt.SGD, torch.optim.SGD:
        p = torch.ones(4, requires_grad=True)
        optimizer = cls([p], lr=0.5)
        p.grad = torch.ones(4)
        optimizer.step(lambda optimizer=optimizer: optimizer.step())
        left = [2]

        def hook(optimizer: Any, *_: object, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] >= 0:
                optimizer.step()

        optimizer.register_step_post_hook(hook)
        optimizer.step()
        results.append(p)
    torch.testing.assert_close(*results)
    assert bool((results[0] == -1.5).all())


@pytest.mark.parametrize("name", ["adamw-clip", "sgd-clip", "lamb"])
def test_a_thread_that_clears_the_gradients_in_the_middle_of_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the step has found is what it works on, as with torch's list of gradients."""
    case, results = BY_NAME[name], []
    original = _fused.gradient_scale
    for meddle in False, True:
        p = torch.ones(5000, requires_grad=True)
        optimizer = case.make([p])
        p.grad = torch.linspace(-1, 1, 5000)

        scribble: list[Tensor] = []

        def scale(*args: Any, meddle: bool = meddle, p: Tensor = p, scribble: list[Tensor] = scribble) -> Any:
            result = original(*args)
            if meddle:
                p.grad = None
                scribble.extend(torch.full((5000,), torch.nan) for _ in range(8))
            return result

        monkeypatch.setattr(_fused, "gradient_scale", scale)
        done = threading.Event()
        bystander = threading.Thread(target=done.wait)
        bystander.start()
        try:
            optimizer.step()
        finally:
            done.set()
            bystander.join()
        results.append(p)
    torch.testing.assert_close(*results, rtol=0, atol=0)
