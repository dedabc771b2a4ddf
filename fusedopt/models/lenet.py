"""LeNet for small images: the layers of the PyTorch tutorial's GarmentClassifier, for any channels and classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """Two convolutions with pooling, three linear layers, ReLU between them.

    Takes float [N, channels, size, size] of at least 16x16, returns unnormalised scores [N, classes].

    The module names (`conv1`, `conv2`, `fc1`, `fc2`, `fc3`) and their order are those of the tutorial, so that its
    checkpoints load and the same seed gives the same weights.

    Source: "Training with PyTorch", https://docs.pytorch.org/tutorials/beginner/introyt/trainingyt.html, after LeCun et
    al., "Gradient-based learning applied to document recognition", Proceedings of the IEEE, 1998.
    """

    def __init__(self, channels: int, classes: int, size: int = 28) -> None:
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

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes] for images [N, channels, size, size]."""
        # The tutorial has ReLU before the pooling: the same numbers, of four times as many.
        features = F.relu(self.pool(self.conv1(images)))
        features = F.relu(self.pool(self.conv2(features)))
        features = torch.flatten(features, 1)
        features = F.relu(self.fc1(features))
        features = F.relu(self.fc2(features))
        scores: Tensor = self.fc3(features)
        return scores


class GarmentClassifier(LeNet):
    """LeNet for Fashion-MNIST: float [N, 1, 28, 28] to [N, 10]; 44,426 parameters."""

    def __init__(self) -> None:
        super().__init__(channels=1, classes=10)


class HandClassifier(LeNet):
    """LeNet for Rock-Paper-Scissors: float RGB [N, 3, 28, 28] to [N, 3]; 44,131 parameters."""

    def __init__(self) -> None:
        super().__init__(channels=3, classes=3)
