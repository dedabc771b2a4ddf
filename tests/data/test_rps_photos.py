"""The photographs of Rock-Paper-Scissors: what is read, and what is refused."""

import io
import os

import numpy as np
import pytest
import torch

from fusedopt.data import DataError, load_rps_photos, rps_photos
from fusedopt.tasks import TASKS

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
REAL = os.environ.get("FUSEDOPT_DATA")
real = pytest.mark.skipif(REAL is None, reason="FUSEDOPT_DATA names no folder of data sets")
NAMES = ("20190403_140000.jpg", "20190501_151500.jpg", "IMG_1.jpg")


def jpg(red, size=128, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (size, size), (red, 100, 200)).save(buffer, "jpeg", quality=100)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three training and two test images of each class; red says which."""
    monkeypatch.setattr(rps_photos, "COUNTS", {"train": (3, 3, 3), "test": (2, 2, 2)})
    folder = tmp_path / "rps-photos"
    for split, names in (("train", NAMES), ("test", ("20190403_160000.jpg", "20190501_130000.jpg"))):
        for label, name in enumerate(rps_photos.CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i, file in enumerate(names):
                (folder / split / name / file).write_bytes(jpg(50 * label + 10 * i + 100 * (split == "test")))
    return folder


def test_images_are_in_order_of_class_and_name(photos):
    data = load_rps_photos(photos.parent)
    assert data.name == "rps-photos"
    assert data.train_images.shape == (9, 3, 64, 64)
    assert data.train_images.dtype == torch.uint8
    red = [0, 10, 20, 50, 60, 70, 100, 110, 120]
    assert data.train_images[:, 0, 0, 0].tolist() == pytest.approx(red, abs=2)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test_images[:, 0, 9, 9].tolist() == pytest.approx([100, 110, 150, 160, 200, 210], abs=2)
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_are_resized_with_antialiasing(photos):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (128, 64))).convert("RGB")
    stripes.save(photos / "train" / "rock" / NAMES[0], quality=100)
    image = load_rps_photos(photos.parent, size=24).train_images[3].float()
    assert image.shape == (3, 24, 24)
    assert (image - 127.5).abs().max() < 20  # taking single pixels would give stripes of 0 and 255


def test_whole_sessions_are_held_out(photos):
    data = load_rps_photos(photos.parent, held_out=["IMG", "20190403_14"])
    assert data.train_images[:, 0, 0, 0].tolist() == pytest.approx([10, 60, 110], abs=2)
    assert data.test_images[:, 0, 0, 0].tolist() == pytest.approx([0, 20, 50, 70, 100, 120], abs=2)
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="unknown session '20190403_16'; choose from 2019-04-03_13, "):
        load_rps_photos(photos.parent, held_out=["20190403_16"])
    with pytest.raises(ValueError, match="leave no images to train on"):
        load_rps_photos(photos.parent, held_out=rps_photos.SESSIONS)


def remove_images(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rock: (rock / NAMES[1]).unlink(), "{rock}: holds 2 images where 3 are expected"),
        (lambda rock: (rock / "more.jpg").write_bytes(jpg(0)), "{rock}: holds 4 images where 3 are expected"),
        (remove_images, "{rock}: holds no .png, .jpg, .jpeg files"),
        (lambda rock: (remove_images(rock), rock.rmdir()), "{rock}: no such folder; each class has a folder"),
        (
            lambda rock: (rock / NAMES[1]).write_bytes(b"no image"),
            f"{{rock}}/{NAMES[1]}: not an image",
        ),
        (lambda rock: (rock / NAMES[1]).write_bytes(jpg(9)[:-40]), f"{{rock}}/{NAMES[1]}: cannot be read"),
        (lambda rock: (rock / NAMES[1]).write_bytes(jpg(0, 64)), f"{{rock}}/{NAMES[1]}: has 64x64 pixels, not 128x128"),
    ],
    ids=["missing", "one too many", "empty folder", "no folder", "no image", "cut short", "another size"],
)
def test_damage_is_named_in_one_line(photos, damage, message):
    rock = photos / "train" / "rock"
    damage(rock)
    with pytest.raises(DataError) as error:
        load_rps_photos(photos.parent)
    assert str(error.value).startswith(message.format(rock=rock))
    assert "\n" not in str(error.value)


def test_without_a_folder_the_message_says_where_the_images_are(tmp_path, monkeypatch):
    monkeypatch.delenv("FUSEDOPT_DATA", raising=False)
    for arguments, start in (((), "rps-photos is not downloaded"), ((tmp_path,), f"{tmp_path}/rps-photos: no such")):
        with pytest.raises(DataError) as error:
            TASKS["rps-photos"].load(*(arguments or (None,)), print)
        assert str(error.value).startswith(start)
        assert f"data/resized/128 of {rps_photos.SOURCE}" in str(error.value)
        assert "20190403_16*.jpg and 20190501_13*.jpg into rps-photos/test" in str(error.value)
        assert "\n" not in str(error.value)


def test_network_of_the_task_takes_its_images():
    task = TASKS["rps-photos"]
    images = torch.zeros(2, 3, task.size, task.size)
    for name in (None, "lenet"):
        assert task.network(name)(images).shape == (2, 3)


@real
def test_real_photographs_are_verified_and_every_one_has_a_session():
    data = load_rps_photos(REAL, size=8)
    assert data.train_labels.bincount().tolist() == [501, 504, 594]
    assert data.test_labels.bincount().tolist() == [118, 97, 120]
    split = load_rps_photos(REAL, size=8, held_out=rps_photos.SESSIONS[:-1])
    assert len(split.train_labels) == 342  # those of the last session, so that each of the others is in one
    assert len(split.test_labels) == 1599 - 342
