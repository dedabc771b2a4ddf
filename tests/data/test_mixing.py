"""Augmentations that mix images, and their labels with them."""

import pytest
import torch
from augmented import CLASSES, MIXING, batch, generator

from fusedopt.data.augmentations import AUGMENTATIONS, compose, make_augmentation


def marked(count=8, height=16, width=16):
    """Images of one grey level each, and one class each: what is mixed of whom can be read off."""
    levels = torch.arange(1, count + 1) / count
    return levels[:, None, None, None].expand(count, 3, height, width).clone(), torch.arange(count)


@pytest.mark.parametrize("name", MIXING)
def test_labels_count_by_what_is_in_the_image(name):
    for seed in range(5):
        images, targets = marked()
        changed, mixed = make_augmentation(name, 8)(images, targets, generator(seed))
        # The grey level of a mixed image is the same mixture as its label's.
        torch.testing.assert_close(changed.mean(dim=(1, 2, 3)), mixed @ images[:, 0, 0, 0], rtol=0, atol=1e-5)
        assert (mixed.amax(dim=1) < 0.99).sum() >= 1
        assert (mixed > 0).sum(dim=1).max() <= (4 if name == "mosaic" else 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_half_precision_is_taken(name, dtype):
    images, targets = marked()
    changed, mixed = make_augmentation(name, 8)(images.to(dtype), targets, generator())
    assert changed.dtype == dtype
    assert changed.isfinite().all()
    if name in MIXING:
        assert mixed.dtype == dtype
        expected = mixed.float() @ images[:, 0, 0, 0]
        torch.testing.assert_close(changed.float().mean(dim=(1, 2, 3)), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_bytes_are_refused_where_they_would_not_be_augmented(name):
    images, targets = marked()
    augment = make_augmentation(name, 8)
    whole = images.mul(255).to(torch.uint8)
    if name in ("pad", "resize", "crop"):
        assert augment(whole, targets, generator())[0].dtype == torch.uint8
        return
    with pytest.raises(ValueError, match=r"floating-point images from 0 to 1, not torch\.uint8; divide by 255"):
        augment(whole, targets, generator())


def test_mixing_twice_takes_probabilities():
    images, targets = marked()
    changed, mixed = compose(["mixup", "cutmix"], 8)(images, targets, generator())
    torch.testing.assert_close(changed.mean(dim=(1, 2, 3)), mixed @ images[:, 0, 0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MIXING)
def test_nothing_is_mixed_with_probability_0(name):
    images, targets = batch()
    changed, mixed = make_augmentation(name, CLASSES, p=0.0)(images, targets, generator())
    assert torch.equal(changed, images)
    assert torch.equal(mixed, torch.eye(CLASSES)[targets])


def test_mixup_draws_shares_from_a_beta_distribution():
    images, targets = torch.eye(2)[torch.arange(4000) % 2][:, :, None, None], torch.arange(4000)
    share = make_augmentation("mixup", 4000, alpha=0.5)(images, targets, generator())[1].diagonal()
    # A partner is another image but for one in 4000; Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1)).
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.var().item() == pytest.approx(1 / 8, abs=0.01)


def test_mosaic_shows_whole_images_in_its_quadrants():
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32).contiguous()
    images = ramp.repeat(4, 1, 1, 1)
    changed, _ = make_augmentation("mosaic", 4, p=1.0)(images, torch.arange(4), generator())
    row = changed[0, 0, 0]
    (drop,) = (row.diff() < -0.5).nonzero()[:, 0].tolist()  # the ramp runs from 0 to 1 on both sides of the split
    assert 7 <= drop <= 24
    assert row[drop] > 0.9
    assert row[drop + 1] < 0.1
    assert row[0] < 0.1
    assert row[-1] > 0.9
