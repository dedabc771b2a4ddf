"""LeNet for small images: the layers of the PyTorch tutorial's GarmentClassifier, for any channels and classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedopt.models.blocks import make_activation, make_normalization


class LeNet(nn.Module):
    """Two convolutions with pooling, three linear layers, an activation between them, by default ReLU.

    Takes float [N, channels, size, size] of at least 16x16, returns unnormalised scores [N, classes].

    The module names (`conv1`, `conv2`, `fc1`, `fc2`, `fc3`) and their order are those of the tutorial, so that its
    checkpoints load and the same seed gives the same weights.

    Source: "Training with PyTorch", https://docs.pytorch.org/tutorials/beginner/introyt/trainingyt.html, after LeCun et
    al., "Gradient-based learning applied to document recognition", Proceedings of the IEEE, 1998.

    Args:
        channels, classes, size: of the images, and how many scores there are.
        activation, normalization: names in `blocks`; a normalization comes before each activation, also of the linear
            layers, which `instance` does not fit.

    Raises:
        ValueError: the images are too small, or a name is unknown or does not fit.
    """

    def __init__(
        self, channels: int, classes: int, size: int = 28, *, activation: str = "relu", normalization: str = "none"
    ) -> None:
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"LeNet takes images of at least 16x16 pixels, not {size}x{size}")
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.after1, self.after2, self.after3, self.after4 = (
            _after(features, activation, normalization, spatial=spatial)
            for features, spatial in ((6, True), (16, True), (120, False), (84, False))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes] for images [N, channels, size, size]."""
        # The tutorial has ReLU before the pooling: the same numbers, of four times as many.
        features = self.after1(self.pool(self.conv1(images)))
        features = self.after2(self.pool(self.conv2(features)))
        features = torch.flatten(features, 1)
        features = self.after3(self.fc1(features))
        features = self.after4(self.fc2(features))
        scores: Tensor = self.fc3(features)
        return scores


def _after(features: int, activation: str, normalization: str, *, spatial: bool) -> Callable[[Tensor], Tensor]:
    if normalization != "none":
        return nn.Sequential(make_normalization(normalization, features, spatial=spatial), make_activation(activation))
    # A function where there is one: in a network this small the call of a module is a percent of a step.
    return F.relu if activation == "relu" else make_activation(activation)


class GarmentClassifier(LeNet):
    """LeNet for Fashion-MNIST: float [N, 1, 28, 28] to [N, 10]; 44,426 parameters."""

    def __init__(self, *, activation: str = "relu", normalization: str = "none") -> None:
        super().__init__(channels=1, classes=10, activation=activation, normalization=normalization)


class HandClassifier(LeNet):
    """LeNet for Rock-Paper-Scissors: float RGB [N, 3, 28, 28] to [N, 3]; 44,131 parameters."""

    def __init__(self, *, activation: str = "relu", normalization: str = "none") -> None:
        super().__init__(channels=3, classes=3, activation=activation, normalization=normalization)
