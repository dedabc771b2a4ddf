"""A small model, trained in one process, that engines of several are held against."""

import torch
from torch import nn

import fusedopt

STEPS, BATCH = 8, 8
CASES = {
    "sgd": lambda params, **more: fusedopt.SGD(params, lr=1.0, momentum=0.9, max_grad_norm=0.05, **more),
    "rmsprop": lambda params, **more: fusedopt.RMSprop(params, lr=0.01, max_grad_norm=0.05, **more),
    "adagrad": lambda params, **more: fusedopt.Adagrad(params, lr=0.1, max_grad_norm=0.05, **more),
    "adamw": lambda params, **more: fusedopt.AdamW(params, lr=0.01, eps=0.1, max_grad_norm=0.05, **more),
    "adamw-no-clip": lambda params, **more: fusedopt.AdamW(params, lr=0.01, **more),
    "delta-bar-delta": lambda params, **more: fusedopt.DeltaBarDelta(params, lr=1.0, max_grad_norm=0.05, **more),
    "lamb": lambda params, **more: fusedopt.LAMB(params, lr=0.02, eps=1e-3, max_grad_norm=0.05, **more),
    "swats": lambda params, **more: fusedopt.SWATS(params, lr=0.01, betas=(0.8, 0.6), eps=0.3, **more),
    "swats-clip": lambda params, **more: fusedopt.SWATS(
        params, lr=0.03, betas=(0.8, 0.6), eps=0.3, max_grad_norm=0.3, **more
    ),
}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1, bias=False))


def batch(step, rank=0, world=1):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 5, generator=generator)[rank * BATCH // world : (rank + 1) * BATCH // world]


def train(model, opt, rank=0, world=1, steps=range(STEPS)):
    for step in steps:
        opt.zero_grad()
        (3 * model(batch(step, rank, world))).square().mean().backward()
        opt.step()


def alone(case, steps=STEPS):
    """What one process with the whole batch comes to."""
    model = make_model()
    opt = CASES[case](model.parameters())
    train(model, opt, steps=range(steps))
    return list(model.parameters()), opt


def check(case, params, opt, steps=STEPS):
    expected, single = alone(case, steps)
    start = list(make_model().parameters())
    assert max((a - b).abs().max() for a, b in zip(start, expected, strict=True)) > 1e-2
    torch.testing.assert_close(
        [p.detach() for p in params], [p.detach() for p in expected], rtol=1e-5, atol=2e-6, msg=lambda m: f"{case}: {m}"
    )
    if single.grad_norm is not None:
        torch.testing.assert_close(opt.grad_norm, single.grad_norm)
    if isinstance(opt, fusedopt.SWATS):
        assert opt.phase == single.phase == ["sgd"]
        torch.testing.assert_close(
            opt.param_groups[0]["switch"], single.param_groups[0]["switch"], rtol=1e-3, atol=1e-6
        )
