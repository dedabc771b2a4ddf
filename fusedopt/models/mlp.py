"""Networks of linear layers: the lecture's and the homework's, for Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fusedopt.models.blocks import initialize, make_activation, make_dropout, make_normalization


class MLP(nn.Module):
    """Linear layers, each but the last followed by normalization, activation and dropout.

    Takes float [N, ...] of as many features as the first of the sizes says, returns unnormalised scores [N, last size].

    Args:
        sizes: features of the input, of each hidden layer, and of the scores.
        activation: a key of `blocks.ACTIVATIONS`.
        normalization: `none`, `batch`, `layer` or `group`.
        dropout: share of the features that is dropped after each activation, or one share for each hidden layer.
        initialization: one of `blocks.INITIALIZATIONS`.

    Raises:
        ValueError: there are fewer than two sizes, a name is unknown, or there is not a share for each hidden layer.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        normalization: str = "none",
        dropout: float | Sequence[float] = 0.0,
        initialization: str = "default",
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"an MLP needs the sizes of its input and of its scores, not {list(sizes)}")
        hidden = len(sizes) - 2
        shares = [dropout] * hidden if isinstance(dropout, float | int) else list(dropout)
        if len(shares) != hidden:
            raise ValueError(f"{hidden} hidden layers need as many shares of dropout, not {shares}")
        layers: list[nn.Module] = [nn.Flatten()]
        for (fan_in, fan_out), share in zip(pairwise(sizes[:-1]), shares, strict=True):
            layers += [
                nn.Linear(fan_in, fan_out),
                make_normalization(normalization, fan_out, spatial=False),
                make_activation(activation),
                make_dropout("dropout", share),
            ]
        layers.append(nn.Linear(sizes[-2], sizes[-1]))
        self.layers = nn.Sequential(*layers)
        initialize(self, initialization)

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes]."""
        scores: Tensor = self.layers(images)
        return scores


class LectureMLP(MLP):
    """784-75-50-25-10 with tanh: the network of STAT 453, whose softmax belongs to the loss here.

    Source: S. Raschka, STAT 453, https://github.com/rasbt/stat453-deep-learning-ss21.
    """

    def __init__(
        self,
        inputs: int = 784,
        classes: int = 10,
        *,
        activation: str = "tanh",
        normalization: str = "none",
        dropout: float | Sequence[float] = 0.0,
        initialization: str = "default",
    ) -> None:
        super().__init__(
            (inputs, 75, 50, 25, classes),
            activation=activation,
            normalization=normalization,
            dropout=dropout,
            initialization=initialization,
        )


class MLP3(MLP):
    """Exactly three linear layers, 784-512-256-10, with batch normalization and dropout between them."""

    def __init__(
        self,
        inputs: int = 784,
        classes: int = 10,
        *,
        activation: str = "relu",
        normalization: str = "batch",
        dropout: float = 0.2,
        initialization: str = "default",
    ) -> None:
        super().__init__(
            (inputs, 512, 256, classes),
            activation=activation,
            normalization=normalization,
            dropout=dropout,
            initialization=initialization,
        )
