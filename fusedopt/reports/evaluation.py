"""What a trained network gets right and wrong on the test images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusedopt.data import ImageData, Normalize
from fusedopt.extras import named_if_missing
from fusedopt.training import predict


@dataclass(frozen=True)
class Evaluation:
    """Predictions for the test images.

    Attributes:
        classes: names of the labels.
        predicted: int64 [N], the label with the highest score of each test image.
        wrong: int64, indices of the test images whose predicted label is another than the true one, rising.
        confusion: int64 [classes, classes], how many test images of the class of a row were taken for that of a column.
    """

    classes: tuple[str, ...]
    predicted: Tensor
    wrong: Tensor
    confusion: Tensor

    @property
    def accuracy(self) -> float:
        """The share of the images classified correctly, 0 to 1."""
        return self.confusion.trace().item() / int(self.confusion.sum())

    @property
    def class_accuracy(self) -> dict[str, float]:
        """The same for the images of each class; NaN for a class without images."""
        shares = self.confusion.diag() / self.confusion.sum(dim=1)
        return dict(zip(self.classes, shares.tolist(), strict=True))

    def summary(self) -> dict[str, Any]:
        """Returns all of it as plain values, for JSON; None stands for the accuracy of a class without images."""
        shares = {name: None if math.isnan(share) else share for name, share in self.class_accuracy.items()}
        return {
            "images": len(self.predicted),
            "accuracy": self.accuracy,
            "class_accuracy": shares,
            "classes": list(self.classes),
            "confusion_matrix": self.confusion.tolist(),
        }


def evaluate(model: nn.Module, data: ImageData, normalize: Normalize) -> Evaluation:
    """Classifies the test images; the model is left in evaluation mode.

    Raises:
        ValueError: there are no test images.
        ModuleNotFoundError: torchmetrics is not installed.
    """
    with named_if_missing():
        from torchmetrics.functional.classification import multiclass_confusion_matrix

    if not len(data.test_labels):
        raise ValueError(f"{data.name} holds no test images")
    predicted = predict(model, data.test_images, normalize)
    confusion = multiclass_confusion_matrix(predicted, data.test_labels, num_classes=len(data.classes))
    wrong = (predicted != data.test_labels).nonzero()[:, 0]
    return Evaluation(data.classes, predicted, wrong, confusion.to(torch.int64))
