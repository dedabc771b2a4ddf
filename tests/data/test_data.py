"""Finding, downloading, checking and reading data sets."""

import gzip
import hashlib
import io
import struct
from pathlib import Path

import pytest
import torch

from fusedopt.data import DataError, Normalize, load_fashion_mnist
from fusedopt.data.fashion_mnist import MD5_SUMS
from fusedopt.data.files import download, locate
from fusedopt.data.idx import read_idx

CONTENT = b"a file" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


def write_idx(path, values, magic=None):
    shape = torch.tensor(values).shape
    header = bytes([0, 0, 8, len(shape)]) if magic is None else magic
    header += struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(gzip.compress(header + torch.tensor(values, dtype=torch.uint8).numpy().tobytes()))


@pytest.fixture
def no_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("FUSEDOPT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """A folder with a Fashion-MNIST of 6 training and 3 test images, and a function that accepts its files' sums."""
    folder = tmp_path / "sets" / "fashion-mnist"
    folder.mkdir(parents=True)
    for split, count in (("train", 6), ("t10k", 3)):
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", [[[i] * 28] * 28 for i in range(count)])
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", [i % 10 for i in range(count)])

    def accept():
        for file in folder.iterdir():
            monkeypatch.setitem(MD5_SUMS, file.name, hashlib.md5(file.read_bytes()).hexdigest())

    accept()
    return folder, accept


def failing(message):
    def fetch(address):
        raise AssertionError(message)

    return fetch


class Interrupted(io.BytesIO):
    """Gives some bytes, then fails."""

    def __init__(self, error):
        super().__init__(CONTENT)
        self.error = error

    def read(self, size=-1):
        if self.tell():
            raise self.error
        return super().read(100)


def test_reads_shape_and_values(tmp_path):
    values = torch.arange(2 * 3 * 4).reshape(2, 3, 4).tolist()
    write_idx(tmp_path / "x.gz", values)
    read = read_idx(tmp_path / "x.gz", dimensions=3)
    assert read.dtype == torch.uint8
    assert read.tolist() == values


def test_reads_an_empty_file(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 0])))
    assert read_idx(tmp_path / "x.gz", dimensions=1).shape == (0,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "no such file", id="missing"),
        pytest.param(b"plain text", "cannot be read", id="not gzip"),
        pytest.param(gzip.compress(b"\0\0\x08"), "truncated within the IDX header", id="short header"),
        pytest.param(gzip.compress(b"\0\0\x08\3" + bytes(4)), "magic number 00000803", id="images for labels"),
        pytest.param(gzip.compress(b"\0\0\x0d\1" + bytes(4)), "magic number 00000d01", id="floats"),
        pytest.param(gzip.compress(b"\0\0\x08\1\0\0\0\5abcd"), "only 4 values .* announces 5", id="too few values"),
        pytest.param(gzip.compress(b"\0\0\x08\1\0\0\0\5abcdef"), "more values .* announces 5", id="too many values"),
        pytest.param(gzip.compress(b"\0\0\x08\1\0\0\0\5abcde")[:-9], "cannot be read", id="truncated gzip"),
    ],
)
def test_damaged_idx_is_named(tmp_path, content, message):
    path = tmp_path / "labels.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, dimensions=1)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_users_folder_is_read_in_place(small_set, monkeypatch, how):
    folder, _ = small_set
    before = sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir())
    if how == "environment":
        monkeypatch.setenv("FUSEDOPT_DATA", str(folder.parent))
    data = load_fashion_mnist(folder.parent if how == "argument" else None, fetch=failing("it needs no download"))
    assert data.train_images.shape == (6, 1, 28, 28)
    assert data.test_images.shape == (3, 1, 28, 28)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images[4].unique().tolist() == [4]
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train_labels.dtype == torch.int64
    assert sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir()) == before


@pytest.mark.usefixtures("no_environment")
def test_argument_wins_over_environment(small_set, monkeypatch, tmp_path):
    folder, _ = small_set
    monkeypatch.setenv("FUSEDOPT_DATA", str(tmp_path / "nowhere"))
    assert len(load_fashion_mnist(folder.parent).train_labels) == 6


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("damage", [remove, truncate, flip_a_bit], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damage_is_noticed_and_never_repaired_in_the_users_folder(small_set, damage, name):
    folder, _ = small_set
    damage(folder / name)
    with pytest.raises(DataError, match="no such file" if damage is remove else "truncated or corrupt") as error:
        load_fashion_mnist(folder.parent, fetch=failing("the user's folder is not to be written"))
    assert str(folder / name) in str(error.value)


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-labels-idx1-ubyte.gz", [0, 1, 2, 3, 4, 10], "label 10 is outside of 0..9"),
        ("train-labels-idx1-ubyte.gz", [0, 1, 2, 3, 4], "6x28x28 values where 5x28x28"),
        ("t10k-images-idx3-ubyte.gz", [[[0] * 27] * 28] * 3, "3x28x27 values where 3x28x28"),
        ("t10k-labels-idx1-ubyte.gz", [], "holds no labels"),
    ],
    ids=["label out of range", "fewer labels than images", "narrow images", "empty"],
)
def test_inconsistent_files_are_refused(small_set, name, values, message):
    folder, accept = small_set
    write_idx(folder / name, values)
    accept()
    with pytest.raises(DataError, match=message):
        load_fashion_mnist(folder.parent)


def test_download_writes_the_file_and_nothing_else(tmp_path):
    target = tmp_path / "new" / "file.gz"
    download("http://x/file.gz", target, MD5, lambda address: io.BytesIO(CONTENT))
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("fetch", "error"),
    [
        pytest.param(lambda _: io.BytesIO(CONTENT[:-1]), DataError, id="truncated"),
        pytest.param(lambda _: Interrupted(ConnectionResetError("reset")), DataError, id="connection lost"),
        pytest.param(lambda _: Interrupted(KeyboardInterrupt()), KeyboardInterrupt, id="stopped by the user"),
    ],
)
def test_failed_download_leaves_nothing(tmp_path, fetch, error):
    target = tmp_path / "file.gz"
    with pytest.raises(error) as raised:
        download("http://x/file.gz", target, MD5, fetch)
    assert list(tmp_path.iterdir()) == []
    if error is DataError:
        assert str(target) in str(raised.value)
        assert "FUSEDOPT_DATA" in str(raised.value)


def test_failed_download_keeps_an_older_file(tmp_path):
    target = tmp_path / "file.gz"
    target.write_bytes(b"older")
    with pytest.raises(DataError):
        download("http://x/file.gz", target, MD5, lambda _: io.BytesIO(b"newer, but wrong"))
    assert target.read_bytes() == b"older"


def test_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        download("http://x/a", tmp_path / "file" / "a", MD5, failing("there is nowhere to put it"))


@pytest.mark.usefixtures("no_environment")
def test_cache_downloads_once_and_replaces_damaged_files(tmp_path):
    asked: list[str] = []

    def fetch(address):
        asked.append(address)
        return io.BytesIO(CONTENT)

    told: list[str] = []
    for _ in range(2):
        folder = locate("set", {"a": MD5, "b": MD5}, "http://x/", fetch=fetch, notify=told.append)
    assert folder == tmp_path / "cache" / "fusedopt" / "set"
    assert asked == ["http://x/a", "http://x/b"]
    assert len(told) == 2
    truncate(folder / "b")
    locate("set", {"a": MD5, "b": MD5}, "http://x/", fetch=fetch, notify=told.append)
    assert asked[2:] == ["http://x/b"]
    assert (folder / "b").read_bytes() == CONTENT


@pytest.mark.usefixtures("no_environment")
def test_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder = locate("set", {"a": MD5}, "http://x/", fetch=lambda _: io.BytesIO(CONTENT), notify=lambda _: None)
    assert folder == tmp_path / ".cache" / "fusedopt" / "set"


def test_normalize_centres_each_channel():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 4
    images[:, 2] = 7
    normalized = Normalize(images)(images)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    expected = torch.tensor([1.0, 1.0, 0.0])  # a constant channel is not divided by its spread of 0
    torch.testing.assert_close(normalized.std(dim=(0, 2, 3), correction=0), expected, atol=1e-5, rtol=0)
