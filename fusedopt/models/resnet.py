"""Residual networks for small images: ResNet-9 and ResNet-18."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from fusedopt.models.blocks import initialize, make_activation, make_dropout, make_normalization


class _Builder:
    """Makes convolutions with normalization and activation as the options say."""

    def __init__(self, activation: str, normalization: str) -> None:
        self.activation, self.normalization = activation, normalization

    def convolution(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
        """A convolution that keeps the size but for its stride, and the normalization; no activation."""
        # A normalization brings a bias of its own.
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=self.normalization == "none")
        return nn.Sequential(layer, make_normalization(self.normalization, outputs, spatial=True))

    def block(self, inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
        """A convolution, normalization, activation, and where asked for a pooling that halves the size."""
        layers = [*self.convolution(inputs, outputs), make_activation(self.activation)]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class _Residual(nn.Module):
    """Adds what its layers make of the features to the features, or to their shortcut."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.layers, self.shortcut, self.activation = layers, shortcut, activation

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.activation(self.layers(features) + self.shortcut(features))
        return result


class ResNet9(nn.Module):
    """Eight convolutions and a linear layer, with two residual connections; 6.6 million parameters for CIFAR-10.

    Takes float [N, channels, size, size] of at least 8x8, returns unnormalised scores [N, classes].

    Source: D. Page, "How to train your ResNet", 2018, https://myrtle.ai/learn/how-to-train-your-resnet/.

    Args:
        channels, classes: of the images, and how many scores there are.
        width: channels of the first convolution; the last has eight times as many.
        scale: of the scores. The largest of 8 * width features are far from unit scale: without it training diverges
            at learning rates eight times smaller.
        activation, normalization, initialization: names in `blocks`.
        dropout, p: which dropout after each of the three stages, and the share that it drops.

    Raises:
        ValueError: a name is unknown.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        *,
        width: int = 64,
        scale: float = 0.125,
        activation: str = "relu",
        normalization: str = "batch",
        dropout: str = "dropblock",
        p: float = 0.0,
        initialization: str = "default",
    ) -> None:
        super().__init__()
        make = _Builder(activation, normalization)

        def residual(count: int) -> nn.Module:
            return _Residual(nn.Sequential(make.block(count, count), make.block(count, count)), *_plain())

        self.scale = scale
        self.prepare = make.block(channels, width)
        self.stages = nn.Sequential(
            nn.Sequential(make.block(width, 2 * width, pool=True), residual(2 * width), make_dropout(dropout, p)),
            nn.Sequential(make.block(2 * width, 4 * width, pool=True), make_dropout(dropout, p)),
            nn.Sequential(make.block(4 * width, 8 * width, pool=True), residual(8 * width), make_dropout(dropout, p)),
        )
        self.classifier = nn.Linear(8 * width, classes)
        initialize(self, initialization)

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes]."""
        features = self.stages(self.prepare(images))
        # Adaptive pooling is refused by --deterministic on a GPU, and by the ONNX export of PyTorch 2.11.
        largest = F.max_pool2d(features, features.shape[2:]).flatten(1)
        scores: Tensor = self.scale * self.classifier(largest)
        return scores


def _plain() -> tuple[nn.Module, nn.Module]:
    return nn.Identity(), nn.Identity()


class ResNet18(nn.Module):
    """Seventeen convolutions and a linear layer in eight residual blocks; 11.2 million parameters for CIFAR-10.

    The network of the paper with the beginning for small images: one 3x3 convolution without stride or pooling. Takes
    float [N, channels, size, size], returns unnormalised scores [N, classes].

    Source: He et al., "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385.

    Args:
        channels, classes, activation, normalization, dropout, p, initialization: see `ResNet9`; dropout comes after
            each of the four stages.
        width: channels of the first stage; the last has eight times as many.

    Raises:
        ValueError: a name is unknown.
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        *,
        width: int = 64,
        activation: str = "relu",
        normalization: str = "batch",
        dropout: str = "dropblock",
        p: float = 0.0,
        initialization: str = "default",
    ) -> None:
        super().__init__()
        make = _Builder(activation, normalization)

        def residual(inputs: int, outputs: int) -> nn.Module:
            stride = 1 if inputs == outputs else 2
            first = make.convolution(inputs, outputs, stride=stride)
            layers = nn.Sequential(*first, make_activation(activation), *make.convolution(outputs, outputs))
            same = inputs == outputs
            shortcut = nn.Identity() if same else make.convolution(inputs, outputs, kernel=1, stride=stride)
            return _Residual(layers, shortcut, make_activation(activation))

        self.prepare = make.block(channels, width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(residual(inputs, outputs), residual(outputs, outputs), make_dropout(dropout, p))
                for inputs, outputs in pairwise(widths)
            )
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(8 * width, classes)
        initialize(self, initialization)

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes]."""
        scores: Tensor = self.classifier(self.pool(self.stages(self.prepare(images))))
        return scores
