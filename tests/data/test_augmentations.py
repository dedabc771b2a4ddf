"""Augmentations: reproducible, random per image, and numerically those of torchvision where it has them."""

import math

import pytest
import torch
from augmented import CLASSES, DEVICES, MIXING, batch, generator
from vision import torchvision

from fusedopt.data.augmentations import AUGMENTATIONS, Compose, compose, make_augmentation
from fusedopt.data.augmentations.color import blur, grayscale, turn_hue
from fusedopt.data.augmentations.geometry import rotate


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_same_state_same_batch_and_arguments_are_not_written(name, device):
    images, targets = (value.to(device) for value in batch())
    before = images.clone(), targets.clone()
    augmentation = make_augmentation(name, CLASSES)
    state = torch.random.get_rng_state()
    first = augmentation(images, targets, generator(0, device))
    second = augmentation(images, targets, generator(0, device))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, (images, targets), before))
    assert torch.equal(torch.random.get_rng_state(), state)
    if name not in ("pad", "resize"):  # which are not random
        assert not torch.equal(augmentation(images, targets, generator(1, device))[0], first[0])


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name not in ("pad", "resize")])
def test_each_image_is_changed_in_its_own_way(name):
    image, _ = batch(1)
    other = image.flip(-1)
    # 32 times the same image (for those that mix: two, in turns), which one set of numbers would treat alike.
    images = torch.cat([image, other if name in MIXING else image]).repeat(16, 1, 1, 1)
    changed, _ = make_augmentation(name, CLASSES)(images, torch.arange(32) % CLASSES, generator())
    distinct = len(changed.flatten(1).unique(dim=0))
    assert distinct >= (2 if name in ("flip", "grayscale") else 12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_values_shape_and_dtype(name, channels):
    for dtype in (torch.float32, torch.float64):
        images, targets = batch(channels=channels, height=12, width=20)
        changed, labels = make_augmentation(name, CLASSES)(images.to(dtype), targets, generator())
        side = {"pad": (20, 28), "resize": (28, 28)}.get(name, (12, 20))
        assert changed.shape == (12, channels, *side)
        assert changed.dtype == dtype
        assert changed.min() >= 0
        assert changed.max() <= 1 + 1e-6
        if name in MIXING:
            assert labels.shape == (12, CLASSES)
            torch.testing.assert_close(labels.sum(dim=1), torch.ones(12, dtype=dtype))
            assert labels.min() >= 0
        else:
            assert torch.equal(labels, targets)


def test_crop_cuts_windows_of_the_padded_image():
    images, targets = batch(40, height=6, width=6)
    changed, _ = make_augmentation("crop", CLASSES, size=5, padding=2, fill=0.0)(images, targets, generator())
    padded = torch.nn.functional.pad(images, [2] * 4)
    places = set()
    for image, whole in zip(changed, padded, strict=True):
        windows = {(top, left): whole[:, top : top + 5, left : left + 5] for top in range(6) for left in range(6)}
        found = [place for place, window in windows.items() if torch.equal(window, image)]
        assert found
        places.add(found[0])
    assert {top for top, _ in places} == {left for _, left in places} == set(range(6))


def test_crop_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"cannot cut 30x30 out of padded images of \[24, 24\]"):
        make_augmentation("crop", CLASSES, size=30)(*batch(), generator())


def test_flip_mirrors_about_half_of_the_images():
    images, targets = batch(400)
    for vertical, side in ((False, -1), (True, -2)):
        changed, _ = make_augmentation("flip", CLASSES, vertical=vertical)(images, targets, generator())
        mirrored = (changed == images.flip(side)).flatten(1).all(dim=1)
        assert ((changed == images).flatten(1).all(dim=1) ^ mirrored).all()
        assert 150 < mirrored.sum() < 250


def test_quarter_turns_are_exact():
    images, _ = batch(3)
    turned = rotate(images, torch.tensor([0.5, 1.0, -0.5]) * math.pi)
    expected = torch.stack([images[i].rot90(k, (-2, -1)) for i, k in enumerate((1, 2, -1))])
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)


def test_rotation_keeps_angles_in_images_that_are_not_square():
    image = torch.zeros(1, 1, 11, 21)
    image[0, 0, 5, 14] = 1.0  # four pixels right of the centre
    turned = rotate(image, torch.tensor([math.pi / 2]))
    assert divmod(int(turned[0, 0].argmax()), 21) == (1, 10)  # counterclockwise: four pixels above it
    assert turned.max() > 0.99


def erased(images, changed):
    return (images != changed).any(dim=1)


def test_random_erasing_covers_rectangles_of_the_right_size():
    images, targets = batch(300, height=32, width=32)
    changed, _ = make_augmentation("random-erasing", CLASSES)(images, targets, generator())
    areas = []
    for mask in erased(images, changed):
        if mask.any():
            rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
            high, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            assert mask.sum() == high * wide
            areas.append(high * wide / 1024)
    assert 110 < len(areas) < 190  # of 300, with probability 1/2
    assert min(areas) > 0.01
    assert 0.25 < max(areas) < 0.36


@pytest.mark.parametrize(("fill", "values"), [("imagenet-mean", (0.485, 0.456, 0.406)), (2.0, (2.0, 2.0, 2.0))])
def test_random_erasing_fills(fill, values):
    images, targets = batch()
    changed, _ = make_augmentation("random-erasing", CLASSES, p=1.0, fill=fill)(images, targets, generator())
    for channel, value in enumerate(values):
        assert changed[:, channel][erased(images, changed)].unique().tolist() == pytest.approx([value])


def test_cutout_hides_a_square_with_the_mean_colour():
    images, targets = batch(200, height=32, width=32)
    changed, _ = make_augmentation("cutout", CLASSES, size=8)(images, targets, generator())
    masks = erased(images, changed)
    areas = masks.sum(dim=(1, 2))
    assert areas.max() == 64
    assert areas.min() >= 16  # at a corner a quarter of it is left
    assert (areas < 64).any()
    for channel in range(3):
        assert changed[:, channel][masks].unique().tolist() == pytest.approx([images[:, channel].mean().item()])


def test_grayscale_and_its_probability():
    images, targets = batch(400)
    changed, _ = make_augmentation("grayscale", CLASSES, p=0.25)(images, targets, generator())
    gray = (changed == changed[:, :1]).flatten(1).all(dim=1)
    assert 70 < gray.sum() < 130
    torch.testing.assert_close(changed[gray][:, :1], grayscale(images[gray]))


def test_noise_has_the_standard_deviation_asked_for():
    images = torch.full((20, 3, 32, 32), 0.5)
    changed, _ = make_augmentation("noise", CLASSES, std=0.1)(images, torch.arange(20), generator())
    assert (changed - images).std().item() == pytest.approx(0.1, rel=0.02)


def test_turn_hue_is_torchvisions():
    adjust_hue = torchvision().transforms.v2.functional.adjust_hue
    images, _ = batch(6)
    turns = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.33, 0.5])
    expected = torch.stack([adjust_hue(image, turn) for image, turn in zip(images, turns.tolist(), strict=True)])
    torch.testing.assert_close(turn_hue(images, turns[:, None, None]), expected, rtol=0, atol=1e-5)


def test_blur_is_torchvisions():
    gaussian_blur = torchvision().transforms.v2.functional.gaussian_blur
    images, _ = batch(3, height=12, width=20)
    sigma = torch.tensor([0.4, 1.0, 3.0])
    expected = torch.stack([gaussian_blur(i, [5, 5], [s]) for i, s in zip(images, sigma.tolist(), strict=True)])
    torch.testing.assert_close(blur(images, sigma, 5), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="images of 2x20 pixels are too small to be blurred with a kernel of 5"):
        blur(images[:, :, :2], sigma, 5)


@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation"])
def test_color_jitter_is_torchvisions(part):
    adjust = getattr(torchvision().transforms.v2.functional, f"adjust_{part}")
    images, targets = batch()
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, part: 0.5}
    changed, _ = make_augmentation("color-jitter", CLASSES, **strengths)(images, targets, generator())
    place = ("brightness", "contrast", "saturation").index(part)
    random = generator()
    factor = [torch.rand(12, 1, 1, 1, generator=random) for _ in range(3)][place] + 0.5
    expected = torch.stack([adjust(i, f) for i, f in zip(images, factor.flatten().tolist(), strict=True)])
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5)
    assert (changed - images).abs().max() > 0.05


def test_composition_is_one_after_the_other():
    images, targets = batch()
    names = ["crop", "flip", "cutout"]
    composed = compose(names, CLASSES)
    assert isinstance(composed, Compose)
    random = generator()
    expected = images
    for name in names:
        expected, targets = make_augmentation(name, CLASSES)(expected, targets, random)
    assert torch.equal(composed(images, targets, generator())[0], expected)
    assert "Crop(size=None, padding=4" in repr(composed)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown augmentation 'shear'; choose from pad, .*mosaic"):
        compose(["crop", "shear"], CLASSES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flip", {"p": 1.5}, "p must lie between 0 and 1, not 1.5"),
        ("pad", {"padding": -1}, "padding must be at least 0, not -1"),
        ("resize", {"size": 0}, "size must be at least 1"),
        ("rotate", {"degrees": float("nan")}, "degrees must be at least 0, not nan"),
        ("color-jitter", {"hue": 0.6}, "hue must lie between 0 and 0.5"),
        ("color-jitter", {"contrast": -0.1}, "contrast must be at least 0"),
        ("noise", {"std": -1.0}, "std must be at least 0"),
        ("blur", {"kernel_size": 4}, "kernel_size must be odd"),
        ("blur", {"low": 0.0}, "low and high must be above 0"),
        ("random-erasing", {"scale": (0.5, 0.2)}, "scale must be two shares"),
        ("random-erasing", {"ratio": (0.0, 1.0)}, "ratio must be two positive numbers"),
        ("random-erasing", {"fill": "mean"}, "fill must be 'random', 'imagenet-mean' or a number, not 'mean'"),
        ("cutout", {"size": 0}, "size must be at least 1"),
        ("mixup", {"alpha": 0.0}, "alpha must be above 0"),
        ("mosaic", {"p": -0.1}, "p must lie between 0 and 1"),
    ],
)
def test_options_out_of_range_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_augmentation(name, CLASSES, **options)


def test_colours_need_one_channel_or_three():
    with pytest.raises(ValueError, match="3 channels, or of 1, not 4"):
        make_augmentation("color-jitter", CLASSES)(*batch(channels=4), generator())
