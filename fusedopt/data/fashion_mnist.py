"""Fashion-MNIST: 70,000 photographs of clothes, 28x28 grey, ten classes (MIT licence, Zalando SE).

Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017, https://github.com/zalandoresearch/fashion-mnist.

Not torchvision's: each of its versions belongs to one of torch's, and its class unpacks into the user's folder what is
read in place here, as one tensor, with errors that name the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fusedopt.data.files import Fetcher, locate, open_url
from fusedopt.data.idx import read_idx
from fusedopt.data.images import DataError, ImageData

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # no https there; the MD5 sums are checked
MD5_SUMS = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def load_fashion_mnist(
    data_dir: Path | str | None = None,
    fetch: Fetcher = open_url,
    notify: Callable[[str], None] = print,
) -> ImageData:
    """Loads Fashion-MNIST; see `fusedopt.data.files.locate` for the arguments.

    Returns:
        ImageData with uint8 [60000, 1, 28, 28] training and [10000, 1, 28, 28] test images.

    Raises:
        DataError: a file is missing, damaged, inconsistent, or cannot be downloaded.
    """
    folder = locate("fashion-mnist", MD5_SUMS, ADDRESS, data_dir, fetch, notify)
    train_images, train_labels = _read_split(folder, "train")
    test_images, test_labels = _read_split(folder, "t10k")
    return ImageData("fashion-mnist", CLASSES, train_images, train_labels, test_images, test_labels)


def _read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    images_path = folder / f"{split}-images-idx3-ubyte.gz"
    labels_path = folder / f"{split}-labels-idx1-ubyte.gz"
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if not len(labels):
        raise DataError(f"{labels_path}: holds no labels; fetch the file again")
    if images.shape != (len(labels), 28, 28):
        size = "x".join(map(str, images.shape))
        raise DataError(f"{images_path}: holds {size} values where {len(labels)}x28x28 were expected; fetch it again")
    if int(labels.max()) >= len(CLASSES):
        raise DataError(f"{labels_path}: label {int(labels.max())} is outside of 0..9; fetch the file again")
    return images[:, None], labels.long()
