"""Gradients in memory that the step writes: their reader sees what torch's order of updates makes it see."""

from __future__ import annotations

from collections.abc import Callable

import gpu
import pytest
import torch
from cases import BY_NAME, Case
from pair import assert_identical, each_class, native_twin, paths_within_a_group, step_both
from torch import Tensor, nn
from torch.optim import Optimizer

N = 40


def three(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(3)
    values = [torch.randn(N, generator=rng, device="cpu").to(gpu.TEST_DEVICE, dtype) for _ in range(3)]
    return [nn.Parameter(value) for value in values]


def state_of(opt: Optimizer, p: Tensor) -> Tensor | None:
    return next((v for v in opt.state.get(p, {}).values() if v.shape == p.shape), None)


def later_parameter(opt: Optimizer, params: list[Tensor]) -> None:
    params[0].grad = params[1].detach()


def earlier_parameter(opt: Optimizer, params: list[Tensor]) -> None:
    params[1].grad = params[0].detach()


def own_parameter(opt: Optimizer, params: list[Tensor]) -> None:
    params[0].grad = params[0].detach()


def the_parameter_itself(opt: Optimizer, params: list[Tensor]) -> None:
    """One tensor, not two of the same memory."""
    params[0].grad = params[1]


def each_others(opt: Optimizer, params: list[Tensor]) -> None:
    params[0].grad, params[1].grad = params[1].detach(), params[0].detach()


def part_of_a_parameter(opt: Optimizer, params: list[Tensor]) -> None:
    params[1].grad = params[0].detach()[3].expand(N)


def numpys_memory(opt: Optimizer, params: list[Tensor]) -> None:
    """Through NumPy's memory, of which torch makes another storage."""
    params[1].grad = torch.from_numpy(params[0].detach().numpy())


def own_state(opt: Optimizer, params: list[Tensor]) -> None:
    if (state := state_of(opt, params[0])) is not None:
        params[0].grad = state


def state_of_another(opt: Optimizer, params: list[Tensor]) -> None:
    if (state := state_of(opt, params[0])) is not None:
        params[1].grad = state


# What a gradient is made of, and the parameters that cannot be fused then.
KINDS: dict[str, tuple[Callable[[Optimizer, list[Tensor]], None], set[int]]] = {
    "later parameter": (later_parameter, {0, 1}),
    "earlier parameter": (earlier_parameter, {0, 1}),
    "own parameter": (own_parameter, {0}),
    "a parameter itself": (the_parameter_itself, {0, 1}),
    "each other's": (each_others, {0, 1}),
    "one element of a parameter": (part_of_a_parameter, {0, 1}),
    "NumPy's memory": (numpys_memory, {0, 1}),
    "own state": (own_state, {0}),
    "state of another": (state_of_another, {0, 1}),
}


def set_gradients(params: list[Tensor], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(N, generator=rng, device="cpu").to(p)


@each_class
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_in_memory_that_is_written(case: Case, kind: str) -> None:
    if kind == "NumPy's memory" and gpu.TEST_DEVICE != "cpu":
        pytest.skip("NumPy has no GPU memory")
    share, slow = KINDS[kind]
    a, b = three(), three()
    ours, theirs = case.make(a), native_twin(case, b)
    for i in range(7):
        shared = i in (0, 2, 3, 5)
        for opt, params in ((ours, a), (theirs, b)):
            set_gradients(params, i)
            if shared:
                share(opt, params)
        shared &= not ("state" in kind and state_of(ours, a[0]) is None)
        step_both(ours, theirs)
        paths = ["torch" if shared and k in slow else "fused" for k in range(3)]
        assert [e.path for e in ours.explain()] == paths_within_a_group(case, paths)
        assert_identical(ours, a, theirs, b, [""] * 3)


@each_class
def test_gradients_that_share_memory_with_each_other_only(case: Case) -> None:
    a, b = three(), three()
    ours, theirs = case.make(a), native_twin(case, b)
    for i in range(4):
        for params in (a, b):
            memory = torch.linspace(-1, 1 + i, 2 * N)
            for k, p in enumerate(params):
                p.grad = memory[7 * k : 7 * k + N]
        step_both(ours, theirs)
        assert {e.path for e in ours.explain()} == {"fused"}
        assert_identical(ours, a, theirs, b, [""] * 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["sgd-momentum-decay", "adamw-decay", "lamb-decay"])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    a, b = three(dtype), three(dtype)
    ours, theirs = case.make(a), native_twin(case, b)
    for i in range(3):
        for params in (a, b):
            set_gradients(params, i)
            each_others(ours, params)
        step_both(ours, theirs)
        assert [e.path for e in ours.explain()] == ["torch", "torch", "fused"]
        assert_identical(ours, a[:2], theirs, b[:2], ["torch", "torch"])


@pytest.mark.parametrize("strided", [0, 1])
def test_a_gradient_of_one_path_in_memory_that_the_other_writes(strided: int) -> None:
    """Of the two parameters that share memory, one is torch's for another reason."""
    case = BY_NAME["adam-decay"]
    both = []
    for _ in range(2):
        params = three()
        params[strided] = nn.Parameter(torch.arange(2.0 * N)[::2])
        both.append(params)
    a, b = both
    ours, theirs = case.make(a), native_twin(case, b)
    for i in range(3):
        for params in both:
            set_gradients(params, i)
            later_parameter(ours, params)
        step_both(ours, theirs)
        assert_identical(ours, a, theirs, b, ["torch", "torch", ""])


def test_one_buffer_for_all_gradients_stays_fused() -> None:
    """As DistributedDataParallel's buckets are."""
    params = three()
    opt = BY_NAME["adamw"].make(params)
    bucket = torch.randn(3 * N)
    for p, part in zip(params, bucket.chunk(3), strict=True):
        p.grad = part
    for _ in range(3):
        opt.step()
        assert {e.path for e in opt.explain()} == {"fused"}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["sgd-momentum", "lamb-no-clip-decay"])
def test_large_tensors_in_several_threads(name: str) -> None:
    case = BY_NAME[name]
    torch.set_num_threads(2)
    a, b = ([nn.Parameter(torch.linspace(-1, end, 600_000)) for end in (1, 2)] for _ in range(2))
    ours, theirs = case.make(a), native_twin(case, b)
    for _ in range(3):
        for x, y in (a, b):
            x.grad, y.grad = y.detach(), y.detach().cos()
        step_both(ours, theirs)
    assert_identical(ours, a, theirs, b, ["torch", "torch"])
