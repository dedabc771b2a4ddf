"""Images of one's own: a folder that holds a folder of images for each class, as torchvision's `ImageFolder` has it.

torchvision's class is not used: it decodes each image anew in each epoch, and knows nothing of a split, of sizes and of
files that are damaged. Here all images are in memory, as those of the other data sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fusedopt.data.image_files import SUFFIXES, is_image, open_image
from fusedopt.data.images import DataError, ImageData, hold_out
from fusedopt.data.rps import ImageFiles

_TESTS = ("test", "val", "valid")
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B")
_SMALLEST, _LARGEST = 16, 64
_SHARE = 0.2
_ADVICE = "replace it, or take it out of the folder"


@dataclass(frozen=True)
class ImageFolder:
    """Image files in class folders; see `find_images`.

    Attributes:
        name: of the folder.
        classes: names of the class folders, in order.
        channels: 1 where all training images are grey, else 3.
        size: to which images are resized: the median of the shorter sides of the training images, from 16 to 64.
        train, test: what holds the class folders. Without a `test` a fifth of each class is held out.
        others: what lies among the images and is none.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    train: Path
    test: Path | None
    others: tuple[Path, ...]

    def load(self, notify: Callable[[str], None] = print) -> ImageData:
        """Reads all images.

        Args:
            notify: is told what is left out, and how the images are split.

        Raises:
            DataError: a file is damaged, or a class is missing in the test images.
            ValueError: there are too few images to hold some out.
        """
        if self.others:
            names = ", ".join(str(path.relative_to(self.train.parent)) for path in self.others[:3])
            names += f", ... ({len(self.others)} in all)" if len(self.others) > 3 else ""
            notify(f"{self.name}: left out, as no {', '.join(SUFFIXES)} file: {names}")
        train = ImageFiles(self.train, self.classes, self.size, channels=self.channels, advice=_ADVICE).load()
        if self.test is None:
            notify(f"{self.name}: a fifth of the images of each class is held out to test on, the same in every run")
            return hold_out(ImageData(self.name, self.classes, *train, train[0][:0], train[1][:0]), _SHARE)
        test = ImageFiles(self.test, self.classes, self.size, channels=self.channels, advice=_ADVICE).load()
        return ImageData(self.name, self.classes, *train, *test)


def find_images(folder: Path | str) -> ImageFolder:
    """Looks through a folder: which classes it has, what their images are like, and what else is there.

    The class folders are in `folder` itself, or in its `train`, and those of the test images in its `test`, `val` or
    `valid`. Folders and files whose names begin with a dot are ignored.

    Raises:
        DataError: there are no two class folders, one has no images, the test images have another class, or a training
            image is damaged.
        ModuleNotFoundError: Pillow is not installed.
    """
    folder = Path(folder).resolve()
    parted = (folder / "train").is_dir()
    train = folder / "train" if parted else folder
    test = next((folder / name for name in _TESTS if (folder / name).is_dir()), None) if parted else None
    classes = tuple(path.name for path in _visible(train) if path.is_dir())
    if len(classes) < 2:
        raise DataError(f"{train}: holds {len(classes)} class folders; it takes one for each of at least two classes")
    if test is not None and (unknown := {path.name for path in _visible(test) if path.is_dir()} - {*classes}):
        raise DataError(f"{test / min(unknown)}: is no class of the training images; take it out, or add it to {train}")
    others = [path for path in _visible(train) if not path.is_dir()]
    for parent in (train, test) if test else (train,):
        for name in classes:
            inside = _visible(parent / name) if (parent / name).is_dir() else []
            others += [path for path in inside if path.is_dir() or not is_image(path.name)]
    sides, grey = [], True
    for path, _ in ImageFiles(train, classes, _LARGEST).files:
        with open_image(path, str(path), _ADVICE) as image:
            sides.append(min(image.size))
            grey = grey and image.mode in _GREY
    size = max(_SMALLEST, min(_LARGEST, round(median(sides))))
    return ImageFolder(folder.name, classes, 1 if grey else 3, size, train, test, tuple(others))


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable") from error
