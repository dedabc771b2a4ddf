"""Statistics of the training images, and the part of them that is held out."""

import os
from pathlib import Path

import pytest
import torch

from fusedopt.data import ImageData, Normalize, hold_out, load_rps
from fusedopt.data.statistics import channel_statistics

REAL = os.environ.get("FUSEDOPT_DATA")


real = pytest.mark.skipif(REAL is None, reason="FUSEDOPT_DATA names no folder of data sets")


def test_statistics_are_those_of_all_pixels():
    images = torch.randint(0, 256, (7, 3, 5, 9), dtype=torch.uint8)
    images[:3, 0] //= 8  # dark images beside bright ones, which their own deviations do not see
    images[:, 2] = 51
    mean, std = channel_statistics(images)
    pixels = images.transpose(0, 1).flatten(1).double() / 255
    torch.testing.assert_close(mean, pixels.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(std, pixels.std(dim=1, correction=0), rtol=1e-12, atol=1e-12)
    assert mean[2].item() == pytest.approx(0.2)
    assert std[2].item() == 0
    per_image = images.double().div(255).std(dim=(2, 3), correction=0).mean(dim=0)
    assert std[0] > 1.05 * per_image[0]


def test_statistics_stay_exact_where_float32_sums_do_not():
    images = torch.full((300, 1, 256, 256), 255, dtype=torch.uint8)  # 2^24 ones and more: float32 cannot count them
    images[:100] = 0
    mean, std = channel_statistics(images)
    assert mean.item() == pytest.approx(2 / 3, rel=1e-14)
    assert std.item() == pytest.approx((2 / 9) ** 0.5, rel=1e-14)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4).byte(), torch.zeros(0, 3, 4, 4).byte()]
)
def test_statistics_refuse_what_are_no_images(images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, C, H, W\]"):
        channel_statistics(images)
    with pytest.raises(ValueError, match="images must be uint8"):
        Normalize(images)


@real
def test_statistics_of_rock_paper_scissors():
    if not (Path(REAL) / "rps").is_dir():
        pytest.skip("there is no rps in FUSEDOPT_DATA")
    data = load_rps()
    assert (len(data.train_labels), len(data.test_labels)) == (2520, 372)
    mean, std = channel_statistics(data.train_images)
    # The book's sums over 2,520 images, which it resized from the originals with another filter.
    golden = torch.tensor([2142.5356, 2070.0806, 2045.1444], dtype=torch.float64) / 2520
    torch.testing.assert_close(mean, golden, rtol=0, atol=3e-3)
    # Its second row are means of the images' own deviations; those of the set are larger.
    too_small = torch.tensor([526.3025, 633.0677, 669.9556], dtype=torch.float64) / 2520
    per_image = data.train_images.double().div(255).std(dim=(2, 3)).mean(dim=0)
    torch.testing.assert_close(per_image, too_small, rtol=0.05, atol=0)
    assert (std > 1.05 * per_image).all()


@real
def test_statistics_of_fashion_mnist():
    from fusedopt.data import load_fashion_mnist

    if not (Path(REAL) / "fashion-mnist").is_dir():
        pytest.skip("there is no fashion-mnist in FUSEDOPT_DATA")
    mean, std = channel_statistics(load_fashion_mnist().train_images)
    assert mean.item() == pytest.approx(0.2860, abs=5e-5)  # the figures in general use
    assert std.item() == pytest.approx(0.3530, abs=5e-5)


def numbered(count=40, classes=4):
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 2, 2)
    labels = torch.arange(count) % classes
    return ImageData("numbered", tuple("abcd"), images, labels, images[:3], labels[:3])


def test_hold_out_splits_each_class():
    data = numbered()
    split = hold_out(data, 0.3, seed=1)
    held, kept = (images[:, 0, 0, 0].tolist() for images in (split.test_images, split.train_images))
    assert sorted(held + kept) == list(range(40))
    assert split.test_labels.bincount().tolist() == [3, 3, 3, 3]
    assert [i % 4 for i in held] == split.test_labels.tolist()
    assert [i % 4 for i in kept] == split.train_labels.tolist()
    assert torch.equal(hold_out(data, 0.3, seed=1).test_images, split.test_images)
    assert not torch.equal(hold_out(data, 0.3, seed=2).test_images, split.test_images)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.01, 0.99])
def test_hold_out_refuses_a_side_without_images(share):
    with pytest.raises(ValueError, match="leaves none to train on or none to test on"):
        hold_out(numbered(), share)
