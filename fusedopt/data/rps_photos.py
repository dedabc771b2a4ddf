"""Rock-Paper-Scissors in photographs: 1,934 hands before many backgrounds, RGB, 128x128 (MIT, Brandon Hawkinson).

Source: B. Hawkinson et al., 2019, https://github.com/hawkinsonb/rockpaperscissors-cnn, `data/resized/128`. There is no
test set there: here it is the two shooting sessions in `TEST_SESSIONS`, whole, because the photographs of one session
resemble each other so much that a random share of them would measure memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusedopt.data.files import data_folder
from fusedopt.data.image_files import open_image
from fusedopt.data.images import DataError, ImageData
from fusedopt.data.rps import ADVICE, CLASSES, ImageFiles

SOURCE = "https://github.com/hawkinsonb/rockpaperscissors-cnn"
COUNTS = {"train": (501, 504, 594), "test": (118, 97, 120)}
"""Images of each class."""
SESSIONS = (
    "2019-04-03_13",
    "20190403_13",
    "20190403_14",
    "20190501_12",
    "20190501_15",
    "20190501_16",
    "IMG",
)
"""The shooting sessions of the training images, as the file names begin: a day and an hour, or another camera."""
TEST_SESSIONS = ("20190403_16", "20190501_13")
_SIDE = 128


def load_rps_photos(
    data_dir: Path | str | None = None, size: int = 64, held_out: Sequence[str] | None = None
) -> ImageData:
    """Loads the photographs from `rps-photos/train` and `rps-photos/test`, which have a folder for each class.

    Args:
        data_dir: holds the folder `rps-photos`; by default the environment variable FUSEDOPT_DATA.
        size: the images are resized to, bilinear with antialiasing.
        held_out: training sessions, as in `SESSIONS`, that take the place of the test images, so that choices can be
            made without looking at those.

    Returns:
        ImageData with uint8 [1599, 3, size, size] training and [335, 3, size, size] test images, in order of class and
        name.

    Raises:
        DataError: no folder is given, a folder or a file is missing, damaged, one too many, or not of 128x128 pixels.
        ValueError: a session is unknown, or all of them are held out.
        ModuleNotFoundError: Pillow, which decodes the images, is not installed.
    """
    for session in held_out or ():
        if session not in SESSIONS:
            raise ValueError(f"unknown session {session!r}; choose from {', '.join(SESSIONS)}")
    folder = data_folder("rps-photos", data_dir)
    if folder is None:
        raise DataError(f"rps-photos is not downloaded: {_advice('a folder')}, named by --data-dir or FUSEDOPT_DATA")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {_advice(str(folder.parent))}")
    splits = {split: ImageFiles(folder / split, CLASSES, size) for split in COUNTS}
    for split, images in splits.items():
        _check(folder / split, images, COUNTS[split])
    train, test = splits["train"], splits["test"]
    if held_out:
        begins = tuple(held_out)
        test.files = [file for file in train.files if file[0].name.startswith(begins)]
        train.files = [file for file in train.files if not file[0].name.startswith(begins)]
        if not train.files:
            raise ValueError(f"the sessions {', '.join(held_out)} leave no images to train on")
    return ImageData("rps-photos", CLASSES, *train.load(), *test.load())


def _advice(folder: str) -> str:
    sessions = " and ".join(f"{session}*.jpg" for session in TEST_SESSIONS)
    return (
        f"put data/resized/128 of {SOURCE} into {folder} as rps-photos/train/{{{','.join(CLASSES)}}}, "
        f"and of these move {sessions} into rps-photos/test/..."
    )


def _check(folder: Path, images: ImageFiles, expected: Sequence[int]) -> None:
    for label, (name, count) in enumerate(zip(CLASSES, expected, strict=True)):
        paths = [path for path, other in images.files if other == label]
        if len(paths) != count:
            raise DataError(f"{folder / name}: holds {len(paths)} images where {count} are expected; fetch {SOURCE}")
        for path in paths:
            with open_image(path, str(path), ADVICE) as image:
                found = image.size
            if found != (_SIDE, _SIDE):
                raise DataError(f"{path}: has {found[0]}x{found[1]} pixels, not {_SIDE}x{_SIDE}; {ADVICE}")
