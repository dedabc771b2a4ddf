"""Rock-Paper-Scissors: 2,892 rendered hands in three poses, RGB, of 300x300 pixels and resized here (CC BY 2.0).

Source: Laurence Moroney, "Rock, Paper, Scissors Dataset", 2019, https://laurencemoroney.com/datasets.html.
The archives' addresses and checksums are those of TensorFlow Datasets, `url_checksums/rock_paper_scissors.txt`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusedopt.data.files import Fetcher, data_folder, locate, open_url
from fusedopt.data.image_files import image_paths, is_image, read_image
from fusedopt.data.images import DataError, ImageData

CLASSES = ("paper", "rock", "scissors")
ADDRESS = "https://storage.googleapis.com/download.tensorflow.org/data/"
ARCHIVES = {
    "rps.zip": "c2403444395842ad04c53612bad54b574443eae17a0723117a2ff87b9d72194f",
    "rps-test-set.zip": "c27ab9fa43ce40b2e453de711365b477f4424586edf0388116674fd320f07503",
}
COUNTS = {"train": 840, "test": 124}
"""Images of each class."""
ADVICE = "fetch it again"


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files in one folder per class, decoded and resized when asked for: for sets that do not fit into memory.

    An item is a uint8 [channels, size, size] image, as `fusedopt.data.read_image` reads it, and its int64 label, the
    index of its folder in `classes`. The files are in order of class, then of name. Needs Pillow.

    Args:
        folder: holds the folders of the classes; other files and folders there are ignored, and so are hidden files and
            folders among the images.
        classes: names of the folders.
        size: the images are resized to, bilinear with antialiasing.
        channels: 3, or 1 to make them grey.
        advice: what an error says to do about a file that cannot be read.

    Raises:
        DataError: a folder is missing or holds no images.
    """

    def __init__(
        self, folder: Path | str, classes: Iterable[str], size: int, *, channels: int = 3, advice: str = ADVICE
    ) -> None:
        folder = self._folder = Path(folder)
        self.size, self._channels, self._advice = size, channels, advice
        self.files: list[tuple[Path, int]] = []
        for label, name in enumerate(classes):
            if not (folder / name).is_dir():
                raise DataError(f"{folder / name}: no such folder; each class has a folder with its images there")
            self.files += [(path, label) for path in image_paths(folder / name)]

    def __repr__(self) -> str:
        """How many there are, and where."""
        classes = len({label for _, label in self.files})
        return f"ImageFiles({self._folder}: {len(self.files):,} images of {classes} classes, size {self.size})"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns one image and its label.

        Raises:
            DataError: the file cannot be read.
        """
        path, label = self.files[index]
        return read_image(path, self._channels, self.size, advice=self._advice), torch.tensor(label)

    def load(self) -> tuple[Tensor, Tensor]:
        """Returns all images uint8 [N, channels, size, size] and labels int64 [N]."""
        images, labels = zip(*(self[i] for i in range(len(self))), strict=True)
        return torch.stack(images), torch.stack(labels)


def load_rps(
    data_dir: Path | str | None = None,
    fetch: Fetcher = open_url,
    notify: Callable[[str], None] = print,
    size: int = 28,
) -> ImageData:
    """Loads Rock-Paper-Scissors; see `fusedopt.data.files.locate` for the first arguments.

    A folder of the user's holds `rps/train` and `rps/test` with a folder of images for each class, of any size, or the
    two archives in `rps`. Archives are read in place, and decoded anew each time.

    Args:
        data_dir, fetch, notify: where the files are; see there.
        size: the images are resized to, bilinear with antialiasing.

    Returns:
        ImageData with uint8 [2520, 3, size, size] training and [372, 3, size, size] test images, in order of class and
        name.

    Raises:
        DataError: a file is missing, damaged, one too many, or cannot be downloaded.
        ModuleNotFoundError: Pillow, which decodes the images, is not installed.
    """
    folder = data_folder("rps", data_dir)
    splits = []
    if folder is not None and (folder / "train").is_dir():
        for split in COUNTS:
            images = ImageFiles(folder / split, CLASSES, size)
            _check_counts(str(folder / split), torch.tensor([label for _, label in images.files]), COUNTS[split])
            splits.append(images.load())
    else:
        folder = locate("rps", ARCHIVES, ADDRESS, data_dir, fetch, notify)
        for split, archive in zip(COUNTS, ARCHIVES, strict=True):
            splits.append(_load_archive(folder / archive, size))
            _check_counts(str(folder / archive), splits[-1][1], COUNTS[split])
    return ImageData("rps", CLASSES, *splits[0], *splits[1])


def _load_archive(path: Path, size: int) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            for label, name in enumerate(CLASSES):
                for member in sorted(filter(_image_of(name), archive.namelist())):
                    content = BytesIO(archive.read(member))
                    images.append(read_image(content, 3, size, name=f"{path}:{member}", advice=ADVICE))
                    labels.append(label)
    except (zipfile.BadZipFile, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from error
    if not images:
        raise DataError(f"{path}: holds no images of {', '.join(CLASSES)}; fetch it again")
    return torch.stack(images), torch.tensor(labels)


def _image_of(name: str) -> Callable[[str], bool]:
    """Whether a member of an archive is an image in the folder of a class."""
    return lambda member: PurePosixPath(member).parent.name == name and is_image(member.rpartition("/")[2])


def _check_counts(place: str, labels: Tensor, expected: int) -> None:
    counts = labels.bincount(minlength=len(CLASSES)).tolist()
    if counts != [expected] * len(CLASSES):
        found = ", ".join(f"{count} of {name}" for count, name in zip(counts, CLASSES, strict=True))
        raise DataError(f"{place}: holds {found} where {expected} of each are expected; fetch the data set again")
