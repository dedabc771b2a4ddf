"""CIFAR-10: 60,000 photographs of ten kinds of objects, 32x32 RGB.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html (the python version).

Not torchvision's, for the reasons in `fashion_mnist`.
"""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedopt.data.files import Fetcher, check, data_folder, locate, open_url
from fusedopt.data.images import DataError, ImageData

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ADDRESS = "https://www.cs.toronto.edu/~kriz/"
FOLDER = "cifar-10-batches-py"
ARCHIVE = {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
TRAIN_SUMS = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_SUMS = {"test_batch": "40351d587109b95175f43aff81a1287e"}
_SIZE = 32


def load_cifar10(
    data_dir: Path | str | None = None,
    fetch: Fetcher = open_url,
    notify: Callable[[str], None] = print,
) -> ImageData:
    """Loads CIFAR-10; see `fusedopt.data.files.locate` for the arguments.

    In a folder of the user's it reads the unpacked files of `cifar-10-batches-py`. There some of `data_batch_1` to `5`
    may be missing, for a smaller training set; `notify` is told which.

    Returns:
        ImageData with uint8 [50000, 3, 32, 32] training (10,000 per batch) and [10000, 3, 32, 32] test images.

    Raises:
        DataError: a file is missing, damaged, inconsistent, or cannot be downloaded.
    """
    folder = data_folder(FOLDER, data_dir)
    if folder is None:
        archive = locate(FOLDER, ARCHIVE, ADDRESS, None, fetch, notify) / next(iter(ARCHIVE))
        train, test = _unpack(archive, [*TRAIN_SUMS]), _unpack(archive, [*TEST_SUMS])
    else:
        present = {name: md5 for name, md5 in TRAIN_SUMS.items() if (folder / name).is_file()}
        missing = [name for name in TRAIN_SUMS if name not in present]
        if missing and present:
            notify(f"{folder} has no {', '.join(missing)}: training on {len(present)} of 5 batches")
        train, test = _read(folder, present or TRAIN_SUMS), _read(folder, TEST_SUMS)
    return ImageData("cifar10", CLASSES, *_decode(train), *_decode(test))


def _read(folder: Path, sums: dict[str, str]) -> dict[str, bytes]:
    for name, md5 in sums.items():
        check(folder / name, md5)
    return {str(folder / name): (folder / name).read_bytes() for name in sums}


def _unpack(archive: Path, names: list[str]) -> dict[str, bytes]:
    try:
        with tarfile.open(archive) as tar:
            members = {name: tar.extractfile(f"{FOLDER}/{name}") for name in names}
            return {f"{archive}:{name}": file.read() for name, file in members.items() if file is not None}
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{archive}: cannot be read ({error}); delete it to download it again") from error


def _decode(files: dict[str, bytes]) -> tuple[Tensor, Tensor]:
    """Images and labels of batches whose checksums have been verified, which is what makes unpickling them safe."""
    images, labels = [], []
    for name, content in files.items():
        try:
            batch: dict[bytes, Any] = pickle.loads(content, encoding="bytes")
            pixels, found = torch.from_numpy(np.array(batch[b"data"], np.uint8)), torch.tensor(batch[b"labels"])
        except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{name}: not a CIFAR-10 batch ({error!r}); fetch it again") from error
        if pixels.shape != (len(found), 3 * _SIZE * _SIZE) or not len(found):
            raise DataError(f"{name}: {list(pixels.shape)} values for {len(found)} labels; fetch it again")
        if not 0 <= int(found.min()) <= int(found.max()) < len(CLASSES):
            raise DataError(
                f"{name}: labels {int(found.min())}..{int(found.max())} are outside of 0..9; fetch it again"
            )
        images.append(pixels.view(-1, 3, _SIZE, _SIZE))
        labels.append(found)
    return torch.cat(images), torch.cat(labels)
