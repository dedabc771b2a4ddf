"""Every optimizer case in every dtype, on sizes at the machine's edges, against the yardstick of closeness.py."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from cases import BY_NAME, CASES, DTYPES, F32, F64, FAST_CASES, HALVES, LOOPS, Case, dtype_id
from closeness import Closeness, clone
from torch import Tensor

import fusedopt

CHUNK = 16 * 1024
# Vector widths, blocks and chunks, each with its neighbours, and empty tensors at both ends and in between.
SIZES = [0, 1, 3, 15, 16, 17, 63, 64, 65, 0, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3, 0]
GUARD, POISON = 80, 0x3F  # elements on either side; a byte that makes a finite number in every dtype


def with_marks(case: Case, *marks: str) -> Any:
    """A fast case, in which each term shows, is tried again in these places; the others need not be."""
    names = [*marks, "each_isa"] if case in LOOPS else marks if case in FAST_CASES else ["one_torch"]
    return pytest.param(case, id=str(case), marks=[getattr(pytest.mark, name) for name in names])


by_case = pytest.mark.parametrize("case", [with_marks(case, "steps", "on_gpu") for case in CASES])
by_fast_case = pytest.mark.parametrize("case", [with_marks(case, "steps") for case in FAST_CASES])
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
by_half = pytest.mark.parametrize("dtype", HALVES, ids=dtype_id)


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    torch.set_num_threads(1)


def bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(torch.uint8) if t.numel() else torch.empty(0, dtype=torch.uint8)


def guarded(values: Tensor, offset: int) -> Tensor:
    """A copy in the same layout that lies somewhere in a larger, poisoned buffer."""
    buffer = torch.empty(2 * GUARD + offset + values.numel(), dtype=values.dtype)
    bits(buffer).fill_(POISON)
    return buffer.as_strided(values.shape, values.stride(), GUARD + offset).copy_(values)


def assert_guards(*tensors: Tensor) -> None:
    for t in tensors:
        assert t._base is not None
        before, after = t._base[: t.storage_offset()], t._base[t.storage_offset() + t.numel() :]
        assert bool((bits(before) == POISON).all()), "written before the beginning"
        assert bool((bits(after) == POISON).all()), "written beyond the end"


def numbers(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1) -> Tensor:
    """Between 1 and 4 times `scale`, of either sign: their squares, times 1 - beta2, are within float16."""
    sign = torch.randint(0, 2, shape) * 2 - 1
    return ((1 + 3 * torch.rand(shape, dtype=F64)) * sign * scale).to(dtype)


def zoo(dtype: torch.dtype, scale: float = 1) -> list[Tensor]:
    """Tensors of all sizes and some dense layouts, at odd offsets in guarded buffers."""
    tensors = [numbers((n,), dtype, scale) for n in SIZES]
    tensors += [numbers((4, 3, 5, 7), dtype, scale).to(memory_format=torch.channels_last)]
    tensors += [numbers((2, 3, 3, 3, 5), dtype, scale).to(memory_format=torch.channels_last_3d)]
    tensors += [numbers((17, 33), dtype, scale).t(), numbers((), dtype, scale), numbers((5, 0, 3), dtype)]
    return [guarded(t, i % 8) for i, t in enumerate(tensors)]


def norm(tensors: list[Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


@by_dtype
@by_case
def test_yardstick(case: Case, dtype: torch.dtype) -> None:
    params, steps = zoo(dtype, 0.25), [zoo(dtype, scale) for scale in (1, 0.5, 2, 1, 0.25)]
    if case.max_grad_norm is not None:  # some steps are clipped, some are not, none beyond the range of float16
        case = replace(case, max_grad_norm=0.6 * norm(steps[0]))
    run = Closeness(case, params)
    for i, grads in enumerate(steps):
        if i == 3:
            run.reload()
        given = [clone(grad._base) for grad in grads if grad._base is not None]
        run.step(grads)
        for grad, before in zip(grads, given, strict=True):
            assert torch.equal(bits(grad._base), bits(before)), "a gradient was written"
    assert_guards(*params)
    run.assert_moved(*(key for key in case.states if key not in case.idle))
    if dtype not in HALVES or case in FAST_CASES:  # a small update is lost in their rounding
        run.assert_moved("param")


@pytest.mark.on_gpu
@by_dtype
@by_fast_case
def test_states_at_odd_offsets(case: Case, dtype: torch.dtype) -> None:
    """Parameters, gradients and states each aligned in their own way give the same bits as a plain allocation."""
    plain = [numbers((n,), dtype) for n in (0, 1, 3, 15, 16, 17, 63, 64, 65, 130)]
    odd = [guarded(p, i % 3) for i, p in enumerate(plain)]
    optimizers, states = [case.make(plain), case.make(odd)], []
    for step in range(3):
        grads = [numbers(tuple(p.shape), dtype) for p in plain]
        for i, grad in enumerate(grads):
            plain[i].grad, odd[i].grad = grad, guarded(grad, (i + step) % 5)
        for optimizer in optimizers:
            optimizer.step()
        if step == 0:
            for i, p in enumerate(odd):
                for k, key in enumerate(case.states):
                    optimizers[1].state[p][key] = guarded(optimizers[1].state[p][key], (i + 3 * k) % 7)
                    states.append(optimizers[1].state[p][key])
        for p, q in zip(plain, odd, strict=True):
            assert torch.equal(bits(p), bits(q))
            for key in case.states:
                assert torch.equal(bits(optimizers[0].state[p][key]), bits(optimizers[1].state[q][key]))
    assert_guards(*odd, *states)


@pytest.mark.steps
@pytest.mark.parametrize(
    "name",
    ["sgd-fast", "sgd-momentum-fast", "rmsprop-fast", "adam-fast", "lamb-fast", "delta-bar-delta-fast", "swats-fast"],
)
def test_empty_tensors_in_every_position(name: str) -> None:
    case = replace(BY_NAME[name], max_grad_norm=None)
    values = [numbers((n,), F32) for n in (5, CHUNK + 1, 33, 2)]
    alone = []
    for value in values:
        p = clone(value)
        p.grad = value + 1
        case.make([p]).step()
        alone.append(p)
    for full in product([False, True], repeat=4):
        params = [clone(value) if keep else torch.empty(0) for value, keep in zip(values, full, strict=True)]
        for p in params:
            p.grad = clone(p) + 1
        case.make(params).step()
        for p, expected, keep in zip(params, alone, full, strict=True):
            assert torch.equal(p, expected if keep else torch.empty(0))


@pytest.mark.steps
@pytest.mark.parametrize("name", ["sgd-nesterov-fast", "rmsprop-centered-momentum-fast", "adagrad-fast", "adamw-fast"])
@by_dtype
def test_thousands_of_tensors_are_one_large_one(name: str, dtype: torch.dtype) -> None:
    case, sizes = BY_NAME[name], [i % 9 for i in range(3000)]
    whole = numbers((sum(sizes),), dtype)
    parts = [clone(t) for t in whole.split(sizes)]
    of_parts, of_whole = case.make(parts), case.make([whole])
    for _ in range(3):
        whole.grad = numbers((sum(sizes),), dtype)
        for p, grad in zip(parts, whole.grad.split(sizes), strict=True):
            p.grad = clone(grad)
        of_parts.step()
        of_whole.step()
    assert torch.equal(torch.cat(parts), whole)
    for key in case.states:
        assert torch.equal(torch.cat([of_parts.state[p][key] for p in parts]), of_whole.state[whole][key])


@by_dtype
@by_fast_case
def test_infinities_and_nans(case: Case, dtype: torch.dtype) -> None:
    """In gradients, in the vectors and in the ragged end: NaN and infinity where the reference has them."""
    params = [numbers((n,), dtype, 0.25) for n in (37, 64, 2)]
    run = Closeness(replace(case, max_grad_norm=None), params)
    for step in range(4):
        grads = [numbers((n,), dtype) for n in (37, 64, 2)]
        if step == 1:
            for at, value in ((3, torch.inf), (18, -torch.inf), (31, torch.nan), (36, torch.inf)):
                grads[0][at] = value
        if step == 2:
            grads[1][63] = -torch.inf
        run.step(grads)
    if not case.by_sign:
        assert bool(params[0][3].isnan() or params[0][3].isinf())
    assert bool(params[2].isfinite().all())


@pytest.mark.steps
@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize(
    "name",
    ["sgd-clip-fast", "rmsprop-clip-fast", "adagrad-clip-fast", "adam-clip-fast", "lamb-fast", "swats-clip-fast"],
)
@by_dtype
def test_norm_that_is_not_finite(name: str, value: float, dtype: torch.dtype) -> None:
    params = [numbers((n,), dtype) for n in (37, 64)]
    run = Closeness(BY_NAME[name], params)
    grads = [numbers((n,), dtype) for n in (37, 64)]
    grads[0][5] = value
    run.step(grads)


@pytest.mark.steps
@by_dtype
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.cls._sum_scope != "tensor" and (c.decoupled or not c.kwargs.get("weight_decay"))],
    ids=str,
)
def test_infinite_parameter_stays(case: Case, dtype: torch.dtype) -> None:
    params = [numbers((37,), dtype)]
    params[0][4], params[0][36] = torch.inf, -torch.inf
    run = Closeness(case, params)
    for _ in range(2):
        run.step([numbers((37,), dtype)])
    assert params[0][4] == torch.inf
    assert params[0][36] == -torch.inf
    assert int(params[0].isfinite().sum()) == 35


def all_numbers(dtype: torch.dtype) -> Tensor:
    """All 65536 of them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.steps
@pytest.mark.on_gpu
@pytest.mark.each_isa
@by_half
@pytest.mark.parametrize("shift", [0, 1, 12345, 40000])
@pytest.mark.parametrize("exponent", [0, -1, -9, -14])
def test_every_half_is_widened_and_rounded_exactly(dtype: torch.dtype, shift: int, exponent: int) -> None:
    """p - lr * g with a power of two for lr is exact but for one rounding to float32 and one to the storage."""
    p, lr = all_numbers(dtype), 2.0**exponent
    grad = p.roll(shift)
    expected = (p.float() - lr * grad.float()).to(dtype)
    for pieces in (p.numel(), 7):  # in vectors, and in ragged ends only
        param = guarded(p, pieces % 5)
        parts = list(param.split(pieces))
        for part, grad_part in zip(parts, grad.split(pieces), strict=True):
            part.grad = grad_part
        fusedopt.SGD(parts, lr=lr).step()
        assert torch.equal(param.isnan(), expected.isnan())
        assert torch.equal(param[~param.isnan()], expected[~expected.isnan()])


@pytest.mark.steps
@pytest.mark.on_gpu
@pytest.mark.each_isa
@by_half
def test_every_half_survives(dtype: torch.dtype) -> None:
    """With lr=0 and a state: read, widened, computed with, rounded and stored, each number is still itself."""
    p = all_numbers(dtype)
    param = clone(p)
    param.grad = torch.ones_like(p)
    optimizer = fusedopt.SGD([param], lr=0.0, momentum=0.9)
    optimizer.step()
    param.grad = torch.zeros_like(p)
    optimizer.state[param]["momentum_buffer"].copy_(p)
    optimizer.param_groups[0]["momentum"] = 1.0
    optimizer.step()
    finite = p.isfinite() & (p != 0)
    for result in (param, optimizer.state[param]["momentum_buffer"]):
        assert torch.equal(result[finite].view(torch.int16), p[finite].view(torch.int16))
        assert torch.equal(result.isnan() | ~p.isfinite(), ~p.isfinite())


@pytest.mark.steps
@pytest.mark.parametrize(("lr_times_decay", "rel"), [(1e-6, 0.005), (1e-7, 0.1)])
def test_small_decoupled_decay(lr_times_decay: float, rel: float) -> None:
    """In float32 a factor 1 - 1e-6 would be 1 - 1.013e-6, and 1 - 1e-7 would be 1 - 1.19e-7."""
    p = 1 + torch.rand(400_000)
    before = p.double()
    p.grad = torch.zeros_like(p)
    fusedopt.AdamW([p], lr=1e-3, weight_decay=lr_times_decay / 1e-3).step()
    assert float((1 - p.double() / before).mean()) == pytest.approx(lr_times_decay, rel=rel)


@pytest.mark.steps
@pytest.mark.each_isa
def test_no_step_touches_its_caller_with_subnormals_flushed() -> None:
    """Adding 0 to what lies beside a sum would show in nothing else: an address, read as a double, is subnormal."""
    params = [torch.ones(n, dtype=torch.bfloat16) for n in range(1, 66)]
    for p in params:
        p.grad = torch.ones_like(p)
    torch.set_flush_denormal(True)
    try:
        fusedopt.NAdam(params, lr=0.5).step()
    finally:
        torch.set_flush_denormal(False)
    assert all(bool((p < 1).all()) for p in params)


@pytest.mark.steps
@pytest.mark.each_isa
def test_the_instruction_set_is_the_one_asked_for() -> None:
    """test_isa.py runs this file in processes of their own."""
    used = fusedopt.info()["instruction set"]
    assert used == os.environ.get("FUSEDOPT_ISA", used)
