"""Reads image files: one way for the images that a network learns from and for those that it is shown later."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusedopt.data.images import DataError
from fusedopt.extras import named_if_missing

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB"}  # by the number of channels
_SHORT = ("PNG", "PPM")  # formats whose mode "I" are 16 bits
_ADVICE = "name an image file"


def read_image(
    file: Path | str | IO[bytes], channels: int, size: int, *, name: str | None = None, advice: str = _ADVICE
) -> Tensor:
    """Reads an image.

    It is turned upright as its EXIF data say, laid on white where it is transparent, made grey for one channel, and
    resized (bilinear with antialiasing) without regard to its proportions. Of an animation it is the first picture.
    16 bits per channel are scaled to 8.

    Args:
        file: of any format that Pillow reads.
        channels: 1 or 3.
        size: of the result.
        name: what an error calls it; by default its path.
        advice: what an error says to do.

    Returns:
        uint8 [channels, size, size].

    Raises:
        DataError: the file is missing or damaged, no image, too large to be one, or one of 32 bits per channel, whose
            range is unknown; or the number of channels is another.
        ModuleNotFoundError: Pillow is not installed.
    """
    with named_if_missing():
        from PIL import Image, ImageOps

    name = str(file) if name is None else name
    if channels not in _MODES:
        raise DataError(f"{name}: images are read with 1 or 3 channels, not with {channels}")
    with open_image(file, name, advice) as image:
        if image.mode == "F" or (image.mode == "I" and image.format not in _SHORT):
            raise ValueError("32 bits per channel, of unknown range; save it with 8 or 16")
        flat = _flat(ImageOps.exif_transpose(image)).convert(_MODES[channels])
        if flat.size != (size, size):
            flat = flat.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(flat)).reshape(size, size, channels).permute(2, 0, 1).contiguous()


@contextmanager
def open_image(file: Path | str | IO[bytes], name: str, advice: str = _ADVICE) -> Iterator[Image.Image]:
    """Opens an image, and says in one line what is wrong with it wherever in the block that turns out.

    Raises:
        DataError: see `read_image`.
    """
    with named_if_missing():
        from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large photographs, and of EXIF data that are damaged
            with _opened(file) as content, Image.open(content) as image:
                yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image that Pillow can read; {advice}") from error
    except Exception as error:  # a damaged file makes Pillow raise anything, SyntaxError and RuntimeError too
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be read ({reason}); {advice}") from error


@contextmanager
def _opened(file: Path | str | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(file, Path | str):
        yield file
        return
    with open(file, "rb", opener=None if os.name == "nt" else _without_waiting) as content:
        mode = os.fstat(content.fileno()).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # may have no end
            raise OSError("it is a device")
        yield content


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe that nothing writes into as an empty file, in place of waiting for a writer."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(handle, True)  # what a writer has not written yet is waited for
    return handle


def _flat(image: Image.Image) -> Image.Image:
    """An image of 8 bits per channel without transparency."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        values = np.asarray(image).astype(np.int32)
        levels = ((values + 128) // 257).clip(0, 255).astype(np.uint8)
        if (transparent := image.info.get("transparency")) is not None:
            levels[values == transparent] = 255
        return Image.fromarray(levels)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image


def image_paths(folder: Path) -> list[Path]:
    """Returns the image files in a folder by name, as their endings tell; nothing hidden, such as macOS's `._x.png`.

    Raises:
        DataError: there are none, or the folder cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if is_image(path.name) and not path.is_dir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable") from error
    if not found:
        raise DataError(f"{folder}: holds no {', '.join(SUFFIXES)} files")
    return sorted(found)


def is_image(name: str) -> bool:
    """Returns whether a file of that name, without folders, counts as an image of a data set."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
