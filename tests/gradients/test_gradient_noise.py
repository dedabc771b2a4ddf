"""Gradient noise: its distribution, its schedule, and that it is the same whenever it should be."""

import math

import pytest
import torch
from torch import nn

import fusedopt
from fusedopt import ExponentialGradientNoise, GradientNoise

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def zeros(*shapes, device="cpu", dtype=torch.float32):
    """Parameters whose gradients are 0: after a step of SGD with lr 1, minus the noise."""
    params = [nn.Parameter(torch.zeros(shape, device=device, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.zeros_like(p)
    return params


def step(optimizer, params):
    """One step on gradients of 0; returns the noise."""
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return [p.grad.clone() for p in params]


@pytest.mark.parametrize("device", DEVICES)
def test_variance_falls_as_the_paper_says(device):
    params = zeros((200, 300), (40_000,), device=device)
    optimizer = fusedopt.SGD(params, lr=1.0)
    noise = GradientNoise(optimizer, eta=0.3, gamma=0.55)
    for t in range(4):
        values = torch.cat([n.flatten() for n in step(optimizer, params)]).double()
        variance = 0.3 / (1 + t) ** 0.55
        assert noise.variance(t) == variance
        # With 100,000 values: standard errors 0.3 % of the deviation for the mean, 0.45 % for the variance.
        assert abs(float(values.mean())) < 0.015 * math.sqrt(variance)
        assert float(values.var()) == pytest.approx(variance, rel=0.02)
        assert float((values.abs() < math.sqrt(variance)).double().mean()) == pytest.approx(
            0.6827, abs=0.01
        )  # Gaussian
    assert noise.steps == 4


def test_variance_falls_exponentially_per_epoch():
    params = zeros((100_000,))
    optimizer = fusedopt.SGD(params, lr=1.0)
    noise = ExponentialGradientNoise(optimizer, eta=0.4, gamma=0.5, steps_per_epoch=2)
    assert [noise.variance(t) for t in range(6)] == [0.4, 0.4, 0.2, 0.2, 0.1, 0.1]
    measured = [float(step(optimizer, params)[0].var()) for _ in range(6)]
    assert measured == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1], rel=0.02)


@pytest.mark.parametrize("cls", [fusedopt.AdamW, torch.optim.AdamW, fusedopt.LAMB])
def test_the_step_is_that_of_the_noisy_gradients(cls):
    (a,), (b,) = zeros((50,)), zeros((50,))
    noisy, plain = cls([a], lr=0.1), cls([b], lr=0.1)
    GradientNoise(noisy, seed=3)
    for i in range(3):
        gradient = torch.sin(torch.arange(50.0) + i)
        a.grad = gradient.clone()
        noisy.step()
        assert not torch.equal(a.grad, gradient)
        b.grad = a.grad.clone()
        plain.step()
        assert torch.equal(a, b)


def test_seed_decides_and_nothing_else_does(threads):
    def noises(seed, threads=1, disturb=False):
        torch.set_num_threads(threads)
        params = zeros((300_000,), (7,))
        optimizer = torch.optim.SGD(params, lr=1.0)
        GradientNoise(optimizer, seed=seed)
        result = []
        for _ in range(3):
            if disturb:
                torch.manual_seed(99)
            result += step(optimizer, params)
        return torch.cat(result)

    first = noises(0)
    before = torch.get_rng_state()
    assert torch.equal(noises(0, threads=4), first)
    assert torch.equal(torch.get_rng_state(), before)  # its own generator
    assert torch.equal(noises(0, disturb=True), first)
    assert not torch.equal(noises(1), first)
    assert len(first.unique()) > 0.9 * len(first)  # fresh for each step and parameter


@pytest.mark.parametrize("device", DEVICES)
def test_resumes(device):
    params = zeros((20,), device=device)
    optimizer = fusedopt.SGD(params, lr=1.0)
    noise = GradientNoise(optimizer, seed=5)
    step(optimizer, params)
    saved = noise.state_dict()
    rest = [step(optimizer, params)[0] for _ in range(3)]

    others = zeros((20,), device=device)
    other = fusedopt.SGD(others, lr=1.0)
    resumed = GradientNoise(other, seed=5)
    step(other, others), step(other, others)
    resumed.load_state_dict(saved)
    assert resumed.steps == 1
    for expected in rest:
        assert torch.equal(step(other, others)[0], expected)


def test_detaches():
    params = zeros((20,))
    optimizer = fusedopt.Adam(params)
    noise = GradientNoise(optimizer)
    assert step(optimizer, params)[0].count_nonzero()
    noise.detach()
    assert not step(optimizer, params)[0].count_nonzero()
    assert noise.steps == 1


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closures_gradients_get_the_noise(by_name):
    (param,) = zeros((20,))
    optimizer = fusedopt.SGD([param], lr=1.0)
    noise = GradientNoise(optimizer, seed=1)

    def closure():
        param.grad = torch.full((20,), 2.0)
        return torch.tensor(7.0)

    assert (optimizer.step(closure=closure) if by_name else optimizer.step(closure)) == 7
    (other,) = zeros((20,))
    reference = fusedopt.SGD([other], lr=1.0)
    GradientNoise(reference, seed=1)
    other.grad = torch.full((20,), 2.0)
    reference.step()
    assert torch.equal(param, other)
    assert noise.steps == 1


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_get_scaled_noise(fused):
    def run(scale):
        (param,) = zeros((20,))
        optimizer = fusedopt.SGD([param], lr=1.0, fused=fused)
        GradientNoise(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((param * torch.arange(20.0)).sum()).backward()
        scaler.step(optimizer)
        return param.detach()

    assert run(1.0).count_nonzero()
    torch.testing.assert_close(run(1024.0), run(1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_dtypes(dtype):
    params = zeros((50_000,), dtype=dtype)
    optimizer = fusedopt.SGD(params, lr=1.0)
    GradientNoise(optimizer, eta=0.3)
    (noise,) = step(optimizer, params)
    assert noise.dtype == dtype
    assert float(noise.to(torch.complex128).var().real) == pytest.approx(0.3, rel=0.03)


def test_parameters_without_gradient_draw_nothing():
    params = zeros((20,), (20,))
    optimizer = fusedopt.SGD(params, lr=1.0)
    GradientNoise(optimizer)
    params[0].grad = None
    optimizer.step()
    assert params[0].grad is None
    alone = zeros((20,))
    other = fusedopt.SGD(alone, lr=1.0)
    GradientNoise(other)
    assert torch.equal(step(other, alone)[0], params[1].grad)


def test_sparse_gradients_are_refused_before_anything_is_written():
    embedding, (param,) = nn.Embedding(5, 2, sparse=True), zeros((4,))
    optimizer = fusedopt.SGD([param, embedding.weight], lr=1.0)
    noise = GradientNoise(optimizer)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert not param.grad.count_nonzero()
    assert not param.count_nonzero()
    assert noise.steps == 0


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (GradientNoise, {"eta": -1}, "eta must be finite and at least 0"),
        (GradientNoise, {"eta": math.nan}, "eta must be"),
        (GradientNoise, {"gamma": math.inf}, "gamma must be finite"),
        (ExponentialGradientNoise, {"gamma": 1.5, "steps_per_epoch": 1}, "above 0 and at most 1"),
        (ExponentialGradientNoise, {"steps_per_epoch": 0}, "at least 1"),
    ],
)
def test_refusals(cls, arguments, message):
    params = zeros((2,))
    optimizer = fusedopt.SGD(params, lr=1.0)
    with pytest.raises(ValueError, match=message):
        cls(optimizer, **arguments)
    assert not step(optimizer, params)[0].count_nonzero()  # nothing was attached
