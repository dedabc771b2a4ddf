"""Ours against torch's optimizers over a hundred steps of real training: on the same gradients, and each on its own."""

from __future__ import annotations

import pytest
import torch
from trajectory import record_steps

from fusedopt.data import ImageData, make_hands
from fusedopt.models import HandClassifier
from fusedopt.training import make_optimizer, seeded

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 100
NAMES = ["sgd", "rmsprop", "adagrad", "adam", "adamw"]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return make_hands(1500, 30)


def live_losses(name: str, data: ImageData, moved: int | None = None) -> torch.Tensor:
    model = seeded(HandClassifier, 0)
    if moved is not None:  # every initial weight by one ulp, up or down
        generator = torch.Generator().manual_seed(moved)
        with torch.no_grad():
            for p in model.parameters():
                up = torch.randint(2, p.shape, generator=generator).bool()
                p.copy_(torch.nextafter(p, torch.where(up, torch.inf, -torch.inf)))
    return torch.tensor(record_steps(model, make_optimizer(name, model.parameters()), data, steps=STEPS).losses)


@pytest.mark.parametrize("name", NAMES)
def test_same_gradients_give_the_same_parameters(name: str, data: ImageData) -> None:
    model = seeded(HandClassifier, 0)
    native = make_optimizer(f"torch.{name}", model.parameters())
    start = [p.detach().clone().requires_grad_() for p in model.parameters()]
    fused = make_optimizer(name, start)
    trajectory = record_steps(model, native, data, steps=STEPS, keep_gradients=True)
    for gradients in trajectory.gradients:
        for p, gradient in zip(start, gradients, strict=True):
            p.grad = gradient
        fused.step()
    for ours, theirs in zip(start, trajectory.parameters, strict=True):
        relative = (ours - theirs).norm() / theirs.norm()
        assert relative < 1e-5
    assert all(explanation.path == "fused" for explanation in fused.explain())  # type: ignore[attr-defined]


@pytest.mark.one_torch
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_live_training_stays_in_the_band_of_one_ulp(name: str, data: ImageData) -> None:
    ours, theirs = live_losses(name, data), live_losses(f"torch.{name}", data)
    torch.testing.assert_close(ours[:10], theirs[:10], rtol=1e-5, atol=1e-5)
    # How far one ulp at the start takes torch from itself, up to each step; chance hits one of five by a factor.
    moved = torch.stack([live_losses(f"torch.{name}", data, moved=seed) for seed in range(5)])
    band = (moved - theirs).abs().max(dim=0).values.cummax(dim=0).values
    distance = (ours - theirs).abs().cummax(dim=0).values
    assert bool((distance[10:] <= 2 * band[10:]).all())
