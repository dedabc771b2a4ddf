"""Losses by name, for scores and class labels or probabilities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def dense(targets: Tensor, outputs: Tensor) -> Tensor:
    """Turns labels int64 [N] into one-hot rows like `outputs` [N, classes]; other targets only get its dtype.

    Raises:
        ValueError: the targets then have another shape than the outputs.
    """
    if targets.dim() == 1 and outputs.dim() == 2 and not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[1])
    if targets.shape != outputs.shape:
        raise ValueError(f"targets {list(targets.shape)} do not fit outputs {list(outputs.shape)}")
    return targets.to(outputs.dtype)


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error between outputs [N, ...] and targets of that shape, or one-hot rows for labels [N]."""
    return F.l1_loss(outputs, dense(targets, outputs))


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error between outputs [N, ...] and targets of that shape, or one-hot rows for labels [N]."""
    return F.mse_loss(outputs, dense(targets, outputs))


def cross_entropy(
    scores: Tensor, targets: Tensor, *, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean of -log softmax(scores) at the targets, in nats.

    Args:
        scores: [N, classes], unnormalised.
        targets: labels int64 [N], or probabilities [N, classes].
        weight: [classes]. For labels the mean is weighted by it; for probabilities the weighted sum is divided by N, as
            `torch.nn.functional.cross_entropy` does it.
        label_smoothing: the share of each target that is spread evenly over the classes.
    """
    return F.cross_entropy(scores, targets, weight=weight, label_smoothing=label_smoothing)


def bce(scores: Tensor, targets: Tensor, *, pos_weight: Tensor | float | None = None) -> Tensor:
    """Mean binary cross-entropy, in nats, between sigmoid(scores) and targets from 0 to 1.

    -(pos_weight * t * log p + (1 - t) * log(1 - p)): the first factor is the target, not the prediction.

    Args:
        scores: [N, ...], unnormalised.
        targets: of that shape, or labels int64 [N], which are turned into one-hot rows.
        pos_weight: how often a positive counts, one number or one per class; None is 1.
    """
    if isinstance(pos_weight, float | int):
        pos_weight = scores.new_tensor(float(pos_weight))
    return F.binary_cross_entropy_with_logits(scores, dense(targets, scores), pos_weight=pos_weight)


def weighted_bce(scores: Tensor, targets: Tensor, *, pos_weight: Tensor | float = 9.0) -> Tensor:
    """`bce` in which a positive counts `pos_weight` times: by default 9, which balances one positive in ten."""
    return bce(scores, targets, pos_weight=pos_weight)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mae": mae,
    "mse": mse,
    "cross-entropy": cross_entropy,
    "bce": bce,
    "weighted-bce": weighted_bce,
}


def make_loss(name: str, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function of scores and targets, e.g. `make_loss("cross-entropy", label_smoothing=0.1)`.

    Args:
        name: a key of `LOSSES`.
        options: keyword arguments of its function.

    Raises:
        ValueError: there is none of that name; the message lists the names.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    return partial(LOSSES[name], **options)
