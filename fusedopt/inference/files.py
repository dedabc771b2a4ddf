"""Classifies image files of any size and kind with the network of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fusedopt.data import DataError, read_image
from fusedopt.training import RunFolder


class Prediction(NamedTuple):
    """What a network says about an image.

    Attributes:
        name: of the class.
        probability: that the network gives it, 0 to 1.
    """

    name: str
    probability: float


Classified = tuple[Path | str, list[Prediction] | DataError]
"""A file with what the network says about it, or with why it cannot be read."""


def classify(run: RunFolder, paths: Iterable[Path | str], top: int = 3) -> Iterator[Classified]:
    """Classifies image files, one by one.

    Args:
        run: has its weights.
        paths: of the files; see `fusedopt.data.read_image`.
        top: how many classes to name, the most probable first.

    Yields:
        Each path, as it was given, with its predictions, or with the error where it cannot be read.

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
