"""Images of one's own in class folders: what is found out about them, and the commands on them."""

import re
from io import BytesIO
from pathlib import Path

import pytest
from command_line import plain, run

from fusedopt.data import DataError, find_images
from fusedopt.training import RunFolder

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


def add(folder: Path, count: int, *, value: int = 0, side: int = 20, mode: str = "RGB") -> None:
    """Makes images of a colour, wider than high."""
    folder.mkdir(parents=True)
    for i in range(count):
        content = BytesIO()
        colour = value + i if mode == "L" else (value + i, 0, 0)
        Image.new(mode, (side + 9, side), colour).save(content, "png")
        (folder / f"{i}.png").write_bytes(content.getvalue())


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten images of each of two classes, not split."""
    for label, name in enumerate(("cat", "dog")):
        add(tmp_path / "pets" / name, 10, value=100 * label)
    return tmp_path / "pets"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("b", "a")):
            add(tmp_path / "split" / part / name, count, value=100 * label, side=100, mode="L")
    return tmp_path / "split"


def test_a_split_is_made_and_said(pets: Path) -> None:
    lines: list[str] = []
    found = find_images(pets)
    data = found.load(lines.append)
    assert (found.name, found.classes, found.channels, found.size) == ("pets", ("cat", "dog"), 3, 20)
    assert data.train_images.shape == (16, 3, 20, 20)
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    values = [*data.train_images[:, 0, 0, 0].tolist(), *data.test_images[:, 0, 0, 0].tolist()]
    assert sorted(values) == [*range(10), *range(100, 110)]  # each image once
    assert lines == ["pets: a fifth of the images of each class is held out to test on, the same in every run"]
    again = find_images(pets).load(lines.append)
    assert (again.test_images == data.test_images).all()


def test_a_split_that_is_there_is_kept(split: Path) -> None:
    found = find_images(split)
    data = found.load(lambda line: pytest.fail(line))
    assert (found.classes, found.channels, found.size) == (("a", "b"), 1, 64)
    assert data.train_labels.tolist() == [0] * 6 + [1] * 6
    assert data.train_images[:, 0, 0, 0].tolist() == [*range(100, 106), *range(6)]
    assert data.test_images[:, 0, 0, 0].tolist() == [100, 101, 102, 0, 1, 2]


@pytest.mark.parametrize(("side", "size"), [(8, 16), (20, 20), (200, 64)])
def test_the_size_is_that_of_most_images_within_bounds(tmp_path: Path, side: int, size: int) -> None:
    add(tmp_path / "a", 3, side=side)
    add(tmp_path / "b", 1, side=3000)
    assert find_images(tmp_path).size == size


def test_one_image_in_colour_makes_all_coloured(pets: Path, split: Path) -> None:
    (split / "train" / "a" / "coloured.png").write_bytes((pets / "cat" / "0.png").read_bytes())
    assert find_images(split).channels == 3


def test_odd_files_are_named(pets: Path) -> None:
    (pets / "readme.txt").touch()
    (pets / "cat" / "more").mkdir()
    (pets / "dog" / "notes.txt").touch()
    (pets / "dog" / ".hidden").touch()
    lines: list[str] = []
    find_images(pets).load(lines.append)
    names = "pets/readme.txt, pets/cat/more, pets/dog/notes.txt"
    assert lines[0] == f"pets: left out, as no .png, .jpg, .jpeg file: {names}"
    (pets / "dog" / "z.gif").touch()
    find_images(pets).load(lines.append)
    assert lines[2].endswith(f"{names}, ... (4 in all)")


def test_what_is_wrong_is_named(pets: Path, split: Path, tmp_path: Path) -> None:
    add(tmp_path / "one" / "cat", 1)
    with pytest.raises(DataError, match=r"one: holds 1 class folders; it takes one for each of at least two classes"):
        find_images(tmp_path / "one")
    add(split / "val" / "c", 1)
    with pytest.raises(DataError, match=r"val/c: is no class of the training images; take it out, or add it to"):
        find_images(split)
    (pets / "bird").mkdir()
    with pytest.raises(DataError, match=r"bird: holds no .png, .jpg, .jpeg files"):
        find_images(pets)
    (pets / "bird" / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x.png: not an image that Pillow can read; replace it, or take it out of"):
        find_images(pets)


def test_train_and_what_follows(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--epochs", 2, "--batch-size", 4, "--device", "cpu", "--model", "lenet", "--no-report")
    output = run("train", "pets", *options).stdout
    assert "pets: 16 training and 4 test images" in output
    config = RunFolder.open("runs/pets-lenet-1").config
    assert (config.dataset, config.classes, config.size) == (str(pets), ("cat", "dog"), 20)
    run("train", pets, *options, "--epochs", 3, "--out", "runs/pets-lenet-1", "--resume")
    monkeypatch.chdir("/")  # the folder is found from elsewhere
    assert RunFolder.open(tmp_path / "runs/pets-lenet-1").load_data(notify=lambda line: None).name == "pets"
    predicted = run("predict", tmp_path / "runs/pets-lenet-1", pets / "dog" / "3.png").stdout
    assert re.search(r"3\.png: dog [\d.]+ %, cat", predicted)


def test_find_lr_tune_and_show_augmentations(pets: Path, tmp_path: Path) -> None:
    options = ("--batch-size", 4, "--model", "lenet", "--iterations", 20, "--quiet", "--out", tmp_path / "x.png")
    assert "20 learning rates" in run("find-lr", pets, *options).stdout
    trial = ("--trials", 1, "--epochs", 1, "--model", "lenet", "--space", "batch-size=4,8", "--quiet")
    assert f"fusedopt train {pets} --model lenet" in run("tune", pets, *trial).stdout
    run("show-augmentations", pets, "flip", "--out", tmp_path / "sheet.png")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "or a folder that has a folder of images for each class" in plain(run("train", "petz", code=2).stderr)
    (tmp_path / "empty").mkdir()
    (line,) = run("train", tmp_path / "empty", code=1).stderr.splitlines()
    assert line.startswith(f"fusedopt: {tmp_path}/empty: holds 0 class folders")
