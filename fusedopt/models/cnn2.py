"""CNN2: two small convolutions and two linear layers with dropout, for Rock-Paper-Scissors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CNN2(nn.Module):
    """Two convolutions with pooling, dropout, two linear layers.

    Takes float [N, channels, size, size], returns unnormalised scores [N, classes]. The modules have the names and the
    order of the book's, so that its checkpoints load and the same seed gives the same weights.

    Source: D. Voigt Godoy, "Deep Learning with PyTorch Step-by-Step", volume II, chapter 6.

    Args:
        n_feature: channels of both convolutions; at 28x28 pixels 5 make 6,823 parameters.
        p: share of the features that is dropped before each linear layer.
        channels, classes: of the images, and how many scores there are.
        size: of the images, at least 10.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(
        self, n_feature: int = 5, p: float = 0.0, *, channels: int = 3, classes: int = 3, size: int = 28
    ) -> None:
        super().__init__()
        side = ((size - 2) // 2 - 2) // 2
        if side < 1:
            raise ValueError(f"CNN2 takes images of at least 10x10 pixels, not {size}x{size}")
        self.n_feature, self.p = n_feature, p
        self.conv1 = nn.Conv2d(channels, n_feature, kernel_size=3)
        self.conv2 = nn.Conv2d(n_feature, n_feature, kernel_size=3)
        self.fc1 = nn.Linear(n_feature * side * side, 50)
        self.fc2 = nn.Linear(50, classes)
        self.drop = nn.Dropout(p)

    def featurizer(self, images: Tensor) -> Tensor:
        """Returns features [N, n_feature * side * side]."""
        # The book has ReLU before the pooling: the same numbers, of four times as many.
        features = F.relu(F.max_pool2d(self.conv1(images), kernel_size=2))
        features = F.relu(F.max_pool2d(self.conv2(features), kernel_size=2))
        return torch.flatten(features, 1)

    def classifier(self, features: Tensor) -> Tensor:
        """Returns scores [N, classes]."""
        features = F.relu(self.fc1(self.drop(features)))
        scores: Tensor = self.fc2(self.drop(features))
        return scores

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes]."""
        return self.classifier(self.featurizer(images))
