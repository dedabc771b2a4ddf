"""Classifies image files of any size and kind with the network of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusedopt.data import DataError
from fusedopt.training import RunFolder

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB"}  # by the number of channels
_SHORT = ("PNG", "PPM")  # formats whose mode "I" are 16 bits


class Prediction(NamedTuple):
    """What a network says about an image.

    Attributes:
        name: of the class.
        probability: that the network gives it, 0 to 1.
    """

    name: str
    probability: float


Classified = tuple[Path, list[Prediction] | DataError]
"""A file with what the network says about it, or with why it cannot be read."""


def read_image(path: Path, channels: int, size: int) -> Tensor:
    """Reads an image file the way the data sets were read.

    It is turned upright as its EXIF data say, laid on white where it is transparent, made grey for one channel, and
    resized (bilinear with antialiasing) without regard to its proportions. Of an animation it is the first picture.

    Args:
        path: a file of any format that Pillow reads.
        channels: 1 or 3.
        size: of the result.

    Returns:
        uint8 [channels, size, size].

    Raises:
        DataError: the file is missing or damaged, no image, or one of 32 bits per channel, whose range is unknown.
        ModuleNotFoundError: Pillow is not installed.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photographs; larger ones are errors
            with Image.open(path) as file:
                if file.mode == "F" or (file.mode == "I" and file.format not in _SHORT):
                    raise ValueError("32 bits per channel, of unknown range; save it with 8 or 16")
                image = _flat(ImageOps.exif_transpose(file)).convert(_MODES[channels])
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image that Pillow can read; name an image file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({reason}); name an image file") from error
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).reshape(size, size, channels).permute(2, 0, 1).contiguous()


def _flat(image: Image.Image) -> Image.Image:
    """An image of 8 bits per channel without transparency."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image


def classify(run: RunFolder, paths: Iterable[Path], top: int = 3) -> Iterator[Classified]:
    """Classifies image files, one by one.

    Args:
        run: has its weights.
        paths: of the files.
        top: how many classes to name, the most probable first.

    Yields:
        Each path with its predictions, or with the error where it cannot be read.

    Raises:
        fusedopt.files.FileError: the run's network cannot be loaded.
    """
    config, model, normalize = run.config, run.load_model(), run.normalize
    for path in paths:
        try:
            image = read_image(path, config.channels, config.size)
        except DataError as error:
            yield path, error
            continue
        with torch.no_grad():
            probabilities = model(normalize(image[None])).softmax(dim=1)[0]
        best = probabilities.topk(min(top, len(config.classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield path, [Prediction(config.classes[label], probability) for label, probability in pairs]
