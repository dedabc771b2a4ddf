"""The parts of networks by name: activations, normalizations, dropout, initializations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky-relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
NORMALIZATIONS = ("none", "batch", "layer", "instance", "group")
DROPOUTS = ("dropout", "dropblock")
INITIALIZATIONS = ("default", "normal", "xavier", "kaiming", "orthogonal")
_GROUPS = 8
_NORMAL_STD = 0.01


def make_activation(name: str) -> nn.Module:
    """Makes a layer of `ACTIVATIONS`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; choose from {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def make_normalization(name: str, channels: int, *, spatial: bool) -> nn.Module:
    """Makes a layer that standardizes features, with a weight and a bias per channel.

    Args:
        name: one of `NORMALIZATIONS`. In images, `layer` is taken over channels and pixels, which is a group
            normalization of one group; `group` has 8 groups, or fewer where the channels do not divide by 8.
        channels: of the features.
        spatial: whether the features are [N, C, H, W]; otherwise [N, C].

    Raises:
        ValueError: there is none of that name, or it is `instance` and there are no pixels to take it over.
    """
    if name not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {name!r}; choose from {', '.join(NORMALIZATIONS)}")
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(channels) if spatial else nn.BatchNorm1d(channels)
    if name == "layer":
        return nn.GroupNorm(1, channels) if spatial else nn.LayerNorm(channels)
    if name == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    if not spatial:
        raise ValueError("instance normalization needs images; choose another for a network of linear layers")
    return nn.InstanceNorm2d(channels, affine=True)


class DropBlock(nn.Module):
    """Drops blocks of neighbouring features [N, C, H, W] in training, a share `p` of all features.

    Single features leave a trace in their neighbours and in the pooling that follows; whole blocks do not. What is left
    is scaled up by the share that is, over the batch.

    Source: Ghiasi et al., "DropBlock: A regularization method for convolutional networks", 2018,
    https://arxiv.org/abs/1810.12890; the numbers are those of `torchvision.ops.drop_block2d`,
    of which each version belongs to one of torch's.

    Args:
        p: share of the features that is dropped, 0 to 1, on average and not counting that blocks overlap.
        block_size: odd; the side of a block, at most that of the features.

    Raises:
        ValueError: p is no share, or the block size is even or below 1.
    """

    def __init__(self, p: float = 0.1, block_size: int = 3) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie between 0 and 1, not {p}")
        if block_size < 1 or block_size % 2 == 0:
            raise ValueError(f"block_size must be odd and at least 1, not {block_size}")
        self.p, self.block_size = p, block_size

    def forward(self, features: Tensor) -> Tensor:
        """Returns [N, C, H, W]; in evaluation mode the features themselves."""
        if not self.training or self.p == 0:
            return features
        height, width = features.shape[-2:]
        side = min(self.block_size, height, width)
        side -= 1 - side % 2  # also where the features are smaller than the block
        centres = height - side + 1, width - side + 1
        rate = self.p * height * width / (side**2 * centres[0] * centres[1])
        dropped = features.new_empty(*features.shape[:2], *centres).bernoulli_(min(rate, 1.0))
        dropped = F.max_pool2d(F.pad(dropped, [side // 2] * 4), side, stride=1, padding=side // 2)
        kept = 1 - dropped
        return features * kept * (kept.numel() / (kept.sum() + 1e-6))

    def extra_repr(self) -> str:
        """What the printed network says."""
        return f"p={self.p}, block_size={self.block_size}"


def make_dropout(name: str, p: float) -> nn.Module:
    """Makes a layer of `DROPOUTS` that drops a share `p`; nothing where p is 0.

    Raises:
        ValueError: there is none of that name, or p is no share.
    """
    if name not in DROPOUTS:
        raise ValueError(f"unknown dropout {name!r}; choose from {', '.join(DROPOUTS)}")
    if p == 0:
        return nn.Identity()
    return nn.Dropout(p) if name == "dropout" else DropBlock(p)


@torch.no_grad()
def initialize(model: nn.Module, name: str) -> None:
    """Draws the weights of all linear and convolutional layers anew, in place, and sets their biases to 0.

    Args:
        model: the network.
        name: one of `INITIALIZATIONS`: `normal` has the standard deviation 0.01, `xavier` is Glorot's uniform one,
            `kaiming` He's normal one for ReLU; `default` changes nothing.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in INITIALIZATIONS:
        raise ValueError(f"unknown initialization {name!r}; choose from {', '.join(INITIALIZATIONS)}")
    if name == "default":
        return
    for layer in model.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if name == "normal":
            nn.init.normal_(layer.weight, std=_NORMAL_STD)
        elif name == "xavier":
            nn.init.xavier_uniform_(layer.weight)
        elif name == "kaiming":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.orthogonal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
