"""A multilayer perceptron for small images."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the flattened image.

    Takes float [N, ...] with `inputs` values per image, returns unnormalised scores [N, classes].

    Args:
        inputs: values per image.
        classes: number of scores.
        hidden: widths of the hidden layers.
    """

    def __init__(self, inputs: int, classes: int, hidden: tuple[int, ...] = (256, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes] for images [N, ...]."""
        scores: Tensor = self.layers(images)
        return scores
