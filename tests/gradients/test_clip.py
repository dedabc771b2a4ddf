"""`clip_grad_norm_` and `clip_grad_value_`, against torch's and against float64."""

import clip as benchmark
import pytest
import torch
from torch import nn

import fusedopt

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def make(*dtypes, shapes=((3, 4), (1000,), (), (0,), (5, 2, 3)), device="cpu", scale=1.0):
    generator = torch.Generator().manual_seed(0)
    params = []
    for dtype in dtypes:
        for shape in shapes:
            params.append(nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)))
            params[-1].grad = (scale * torch.randn(shape, generator=generator)).to(device, dtype)
    return params


def grads(params):
    return [None if p.grad is None else p.grad.clone() for p in params]


@pytest.mark.parametrize("dtypes", [(F32,), (F64,), (BF16,), (F16,), (F32, F64), (BF16, F32)], ids=str)
@pytest.mark.parametrize("limit", [0.5, 1e4, 0.0])
def test_norm_against_float64(dtypes, limit):
    params = make(*dtypes)
    before = grads(params)
    norm = fusedopt.clip_grad_norm_(params, limit)
    exact = torch.cat([g.double().flatten() for g in before]).norm()
    theirs = torch.nn.utils.clip_grad_norm_(make(*dtypes), limit)
    assert norm.dtype == theirs.dtype
    torch.testing.assert_close(norm.double(), exact, rtol=2 * torch.finfo(norm.dtype).eps, atol=0)
    factor = min(1.0, limit / (float(exact) + 1e-6))
    for p, g in zip(params, before, strict=True):
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(p.grad.double(), factor * g.double(), rtol=4 * eps, atol=1e-7 * eps)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind", ["dense", "strided", "some without", "one tensor", "generator", "complex"])
@pytest.mark.parametrize("norm_type", [2, 1.0, "inf"])
def test_norm_against_torch(device, kind, norm_type):
    def build():
        dtypes = [F32, torch.complex64] if kind == "complex" else [F32]
        shapes = ((3, 4), (1000,), ()) if norm_type == "inf" else ((3, 4), (1000,), (), (0,))  # torch's needs a value
        params = make(*dtypes, shapes=shapes, device=device)
        if kind == "strided":
            params[1].grad = torch.randn(2000, generator=torch.Generator().manual_seed(1)).to(device)[::2]
        if kind == "some without":
            params[0].grad = params[-1].grad = None
        return params

    ours, theirs = build(), build()
    argument = {"one tensor": lambda p: p[1], "generator": iter}.get(kind, lambda p: p)
    norm = fusedopt.clip_grad_norm_(argument(ours), 0.5, norm_type)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(argument(theirs), 0.5, norm_type))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_norm_that_is_not_finite(value):
    ours, theirs = make(F32), make(F32)
    for params in (ours, theirs):
        params[1].grad[3] = value
    before = grads(ours)
    with pytest.raises(RuntimeError, match="non-finite"):
        fusedopt.clip_grad_norm_(ours, 0.5, error_if_nonfinite=True)
    torch.testing.assert_close(grads(ours), before, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        fusedopt.clip_grad_norm_(ours, 0.5), torch.nn.utils.clip_grad_norm_(theirs, 0.5), equal_nan=True
    )
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, equal_nan=True)


def test_small_gradients_are_not_written():
    params = make(F32)
    versions = [p.grad._version for p in params]
    fusedopt.clip_grad_norm_(params, 1e6)
    assert [p.grad._version for p in params] == versions
    fusedopt.clip_grad_norm_(params, 1e-6)
    assert all(p.grad._version > v for p, v in zip(params, versions, strict=True))


def test_norm_of_many_small_values_loses_nothing():
    # torch sums in float32, and is off by 2e-3 here.
    params = make(F32, shapes=((1 << 22,),))
    params[0].grad.fill_(1e-4)
    norm = fusedopt.clip_grad_norm_(params, 1e6)
    assert float(norm) == pytest.approx(float(params[0].grad[0]) * 2**11, rel=1e-7)


def test_a_parameter_given_twice_is_clipped_as_torch_does():
    ours, theirs = make(F32), make(F32)
    norm = fusedopt.clip_grad_norm_([*ours, ours[0]], 0.5)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_([*theirs, theirs[0]], 0.5))
    torch.testing.assert_close(grads(ours), grads(theirs))


def test_nothing_to_clip():
    assert fusedopt.clip_grad_norm_([], 1.0) == 0
    assert fusedopt.clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0) == 0


def test_float16_gradients_whose_norm_overflows():
    params = make(F16, shapes=((10_000,),))
    params[0].grad.fill_(1000)  # norm 100,000, beyond float16's 65,504
    assert fusedopt.clip_grad_norm_(params, 10.0).isinf()  # as torch's, in the gradients' dtype
    torch.testing.assert_close(params[0].grad, torch.full_like(params[0].grad, 0.1))


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_value(device):
    params = make(F32, BF16, device=device, scale=2.0)
    before = grads(params)
    fusedopt.clip_grad_value_(params, 0.7)
    for p, g in zip(params, before, strict=True):
        limit = torch.tensor(0.7, dtype=p.dtype, device=device)
        assert torch.equal(p.grad, torch.where(g.abs() > limit, limit * g.sign(), g))
    assert any((g.abs() > 0.7).any() for g in before)


def test_the_benchmark_prints_a_ratio_per_case(capsys, threads):
    benchmark.main(["--sets", "lenet", "--threads", "1", "--repeats", "2", "--seconds", "0.01"])
    output = capsys.readouterr().out
    assert "# cpu:" in output
    rows = [line.split() for line in output.splitlines() if line.startswith("lenet")]
    assert [row[1:3] for row in rows] == [["clip_grad_norm_", "idle"], ["clip_grad_norm_", "clipped"]]
    for row in rows:
        assert float(row[5].removesuffix("x")) > 0
