"""CIFAR-10 and Rock-Paper-Scissors."""

import hashlib
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from fusedopt.data import DataError, ImageFiles, cifar10, load_cifar10, load_rps, rps

pytestmark = pytest.mark.one_torch

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture
def no_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("FUSEDOPT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def content_of(path):
    return path.read_bytes()


def digest(content, algorithm="md5"):
    return hashlib.new(algorithm, content).hexdigest()


def batch_file(first, count=4, labels=None):
    """A CIFAR-10 batch whose images hold their number in red, and the number of the channel in green and blue."""
    pixels = np.array([[first + i, 1, 2] for i in range(count)], np.uint8).reshape(count, 3)
    data = np.repeat(pixels, 1024, axis=1)
    return pickle.dumps({b"data": data, b"labels": list(range(count)) if labels is None else labels})


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """A folder with a small CIFAR-10, and a function that accepts its files' sums."""
    folder = tmp_path / "sets" / cifar10.FOLDER
    folder.mkdir(parents=True)
    for number, name in enumerate([*cifar10.TRAIN_SUMS, *cifar10.TEST_SUMS]):
        (folder / name).write_bytes(batch_file(10 * number))

    def accept():
        for sums in (cifar10.TRAIN_SUMS, cifar10.TEST_SUMS):
            for name in sums:
                if (folder / name).is_file():
                    monkeypatch.setitem(sums, name, digest(content_of(folder / name)))

    accept()
    return folder, accept


def test_cifar10_reads_all_batches_in_order(small_cifar10):
    folder, _ = small_cifar10
    data = load_cifar10(folder.parent, notify=pytest.fail)
    assert data.train_images.shape == (20, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images[:, 0, 0, 0].tolist() == [10 * b + i for b in range(5) for i in range(4)]
    assert data.train_images[5, 1].unique().tolist() == [1]
    assert data.test_images[:, 0, 31, 31].tolist() == [50, 51, 52, 53]
    assert data.train_labels.tolist() == [0, 1, 2, 3] * 5
    assert data.train_labels.dtype == torch.int64
    assert data.classes[3] == "cat"


def test_cifar10_says_which_batches_are_missing(small_cifar10):
    folder, _ = small_cifar10
    for number in (2, 5):
        (folder / f"data_batch_{number}").unlink()
    told = []
    assert len(load_cifar10(folder.parent, notify=told.append).train_labels) == 12
    assert told == [f"{folder} has no data_batch_2, data_batch_5: training on 3 of 5 batches"]


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch"])
def test_cifar10_damage_is_noticed(small_cifar10, name):
    folder, _ = small_cifar10
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or corrupt, its MD5 sum is") as error:
        load_cifar10(folder.parent)
    assert str(path) in str(error.value)


def test_cifar10_without_any_training_batch_names_the_first(small_cifar10):
    folder, _ = small_cifar10
    for name in cifar10.TRAIN_SUMS:
        (folder / name).unlink()
    with pytest.raises(DataError, match="data_batch_1: no such file"):
        load_cifar10(folder.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (batch_file(0, labels=[0, 1, 2, 10]), r"labels 0\.\.10 are outside of 0\.\.9"),
        (batch_file(0, labels=[0, -1, 2, 3]), r"labels -1\.\.3 are outside"),
        (batch_file(0, labels=[0, 1, 2]), r"\[4, 3072\] values for 3 labels"),
        (batch_file(0, count=0), "for 0 labels"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}), "not a CIFAR-10 batch"),
        (b"no pickle", "not a CIFAR-10 batch"),
    ],
    ids=["label too high", "label too low", "fewer labels", "empty", "no labels", "no pickle"],
)
def test_cifar10_inconsistent_batches_are_refused(small_cifar10, content, message):
    folder, accept = small_cifar10
    (folder / "data_batch_4").write_bytes(content)
    accept()
    with pytest.raises(DataError, match=message) as error:
        load_cifar10(folder.parent)
    assert str(folder / "data_batch_4") in str(error.value)


@pytest.mark.usefixtures("no_environment")
def test_cifar10_is_downloaded_once_and_read_from_its_archive(small_cifar10, monkeypatch):
    folder, _ = small_cifar10
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname=cifar10.FOLDER)
    monkeypatch.setitem(cifar10.ARCHIVE, "cifar-10-python.tar.gz", digest(buffer.getvalue()))
    asked = []

    def fetch(address):
        asked.append(address)
        return io.BytesIO(buffer.getvalue())

    for _ in range(2):
        data = load_cifar10(fetch=fetch, notify=lambda line: None)
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]
    assert torch.equal(data.train_images, load_cifar10(folder.parent).train_images)


def test_cifar10_archive_without_a_batch_is_named(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"x\.tar\.gz: cannot be read .*data_batch_1"):
        cifar10._unpack(tmp_path / "x.tar.gz", ["data_batch_1"])


COUNTS = {"train": 3, "test": 2}


def png(red, size=28, mode="RGBA"):
    buffer = io.BytesIO()
    color = (red, 100, 200, 255)[: len(mode)]
    Image.new(mode, (size, size), color).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def small_rps(tmp_path, monkeypatch):
    """A folder with three training and two test images of each class; red says which."""
    monkeypatch.setattr(rps, "COUNTS", COUNTS)
    folder = tmp_path / "sets" / "rps"
    for split, count in COUNTS.items():
        for label, name in enumerate(rps.CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                (folder / split / name / f"{name}{i}.png").write_bytes(png(10 * label + i))
    return folder


def test_rps_reads_folders_in_order_of_class_and_name(small_rps):
    data = load_rps(small_rps.parent)
    assert data.train_images.shape == (9, 3, 28, 28)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert data.train_images[4, :, 5, 5].tolist() == [11, 100, 200]
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test_labels.dtype == torch.int64


def test_rps_resizes_with_antialiasing(small_rps):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (300, 150))).convert("RGB")
    stripes.save(small_rps / "train" / "rock" / "rock1.png")
    image = load_rps(small_rps.parent).train_images[4].float()
    assert (image - 127.5).abs().max() < 20  # taking single pixels would give stripes of 0 and 255
    assert load_rps(small_rps.parent, size=20).train_images.shape == (9, 3, 20, 20)


def test_rps_missing_image_is_counted(small_rps):
    (small_rps / "test" / "paper" / "paper1.png").unlink()
    with pytest.raises(DataError, match="1 of paper, 2 of rock, 2 of scissors where 2 of each") as error:
        load_rps(small_rps.parent)
    assert str(small_rps / "test") in str(error.value)


@pytest.mark.parametrize(
    "damage", [lambda c: b"", lambda c: b"GIF", lambda c: c[:-30], lambda c: c[:50] + b"x" + c[51:]]
)
def test_rps_damaged_image_is_named(small_rps, damage):
    path = small_rps / "train" / "scissors" / "scissors2.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot be read|not an image") as error:
        load_rps(small_rps.parent)
    assert str(path) in str(error.value)


def test_rps_missing_folder_is_named(small_rps):
    for path in (small_rps / "train" / "rock").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"rock: holds no \.png, \.jpg, \.jpeg files"):
        load_rps(small_rps.parent)
    (small_rps / "train" / "rock").rmdir()
    with pytest.raises(DataError, match="rock: no such folder"):
        load_rps(small_rps.parent)


def archive(split, top):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"{top}/", "")
        for label, name in enumerate(rps.CLASSES):
            file.writestr(f"{top}/{name}/", "")
            for i in reversed(range(COUNTS[split])):
                file.writestr(f"{top}/{name}/{name}{i}.png", png(10 * label + i, size=56))
    return buffer.getvalue()


@pytest.mark.usefixtures("no_environment")
def test_rps_is_downloaded_once_and_read_from_its_archives(small_rps, monkeypatch):
    contents = {"rps.zip": archive("train", "rps"), "rps-test-set.zip": archive("test", "rps-test-set")}
    for name, content in contents.items():
        monkeypatch.setitem(rps.ARCHIVES, name, digest(content, "sha256"))
    asked = []

    def fetch(address):
        asked.append(address)
        return io.BytesIO(contents[address.rpartition("/")[2]])

    for _ in range(2):
        data = load_rps(fetch=fetch, notify=lambda line: None)
    assert asked == [rps.ADDRESS + name for name in contents]
    folders = load_rps(small_rps.parent)
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(data, field), getattr(folders, field))


@pytest.mark.usefixtures("no_environment")
def test_rps_archive_without_all_images_is_counted(small_rps, monkeypatch):
    contents = {"rps.zip": archive("test", "rps"), "rps-test-set.zip": archive("test", "rps-test-set")}
    for name, content in contents.items():
        monkeypatch.setitem(rps.ARCHIVES, name, digest(content, "sha256"))
    with pytest.raises(DataError, match=r"rps\.zip: holds 2 of paper, 2 of rock, 2 of scissors where 3 of each"):
        load_rps(fetch=lambda address: io.BytesIO(contents[address.rpartition("/")[2]]), notify=lambda line: None)


def test_rps_wrong_archive_is_refused(tmp_path):
    (tmp_path / "rps").mkdir()
    (tmp_path / "rps" / "rps.zip").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"rps\.zip: truncated or corrupt, its SHA256 sum is"):
        load_rps(tmp_path)
    with pytest.raises(DataError, match=r"rps\.zip: cannot be read"):
        rps._load_archive(tmp_path / "rps" / "rps.zip", 28)


def test_image_files_are_told_in_a_line(small_rps):
    files = ImageFiles(small_rps / "train", rps.CLASSES, size=16)
    assert repr(files) == f"ImageFiles({small_rps}/train: 9 images of 3 classes, size 16)"


def test_image_files_decode_one_by_one(small_rps):
    files = ImageFiles(small_rps / "train", rps.CLASSES, 16)
    assert len(files) == 9
    image, label = files[5]
    assert image.shape == (3, 16, 16)
    assert image[0].unique().tolist() == [12]
    assert label.item() == 1
