"""Losses by name, against the lectures' worked tables and PyTorch's own."""

import math

import pytest
import torch
from torch.nn import functional as F

from fusedopt.training import LOSSES, make_loss


def logits(*p):
    """Scores whose sigmoid is p."""
    return torch.tensor(p, dtype=torch.float64).logit()


@pytest.mark.parametrize(
    ("p", "expected"),
    [((0.4, 0.4, 0.5, 0.1), 1.207078), ((0.7, 0.8, 0.9, 0.3), 0.472288)],
    ids=["model 1", "model 2"],
)
def test_cross_entropy_of_the_worked_table(p, expected):
    # Of three classes the right one has the probability p; the others share the rest.
    rows = torch.tensor([[q, (1 - q) / 2, (1 - q) / 2] for q in p], dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)
    assert make_loss("cross-entropy")(rows.log(), labels).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "expected"), [((0.8, 0.6, 0.3), 1.2432338162), ((0.3, 0.2, 0.6), 0.3635480397)], ids=["model 1", "model 2"]
)
def test_binary_cross_entropy_of_the_worked_table(p, expected):
    assert make_loss("bce")(logits(*p), torch.tensor([0.0, 0.0, 1.0])).item() == pytest.approx(expected, abs=1e-9)


def test_weighted_binary_cross_entropy_counts_positives_nine_times():
    loss = make_loss("weighted-bce")(logits(0.8, 0.6, 0.3), torch.tensor([0.0, 0.0, 1.0]))
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.4) + 9 * math.log(0.3)) / 3)
    per_class = make_loss("weighted-bce", pos_weight=torch.tensor([2.0, 5.0]))
    scores = torch.tensor([[0.5, -1.0]])
    expected = (2 * F.softplus(-scores[0, 0]) + F.softplus(scores[0, 1])) / 2
    torch.testing.assert_close(per_class(scores, torch.tensor([0])), expected)


def test_class_weights_and_label_smoothing():
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    log_p = scores.log_softmax(dim=1)
    weight = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    weighted = make_loss("cross-entropy", weight=weight)(scores, labels)
    torch.testing.assert_close(weighted, -(3 * log_p[0, 0] + 0.5 * log_p[1, 2]) / 3.5)
    smooth = make_loss("cross-entropy", label_smoothing=0.3)(scores, labels)
    target = 0.7 * F.one_hot(labels, 3) + 0.1
    torch.testing.assert_close(smooth, -(target * log_p).sum(dim=1).mean())
    torch.testing.assert_close(make_loss("cross-entropy")(scores, target), -(target * log_p).sum(dim=1).mean())


def test_mae_and_mse_take_values_labels_and_probabilities():
    outputs = torch.tensor([[0.5, 0.5], [1.0, -1.0]])
    assert make_loss("mae")(outputs, torch.tensor([0, 1])).item() == pytest.approx((0.5 + 0.5 + 1 + 2) / 4)
    assert make_loss("mse")(outputs, torch.tensor([0, 1])).item() == pytest.approx((0.25 + 0.25 + 1 + 4) / 4)
    assert make_loss("mse")(outputs, torch.tensor([[0.5, 0.5], [0.0, 0.0]])).item() == pytest.approx(2 / 4)
    assert make_loss("mae")(torch.tensor([1.0, 2.0]), torch.tensor([2, 4])).item() == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["mae", "mse", "bce", "weighted-bce"])
def test_targets_of_another_shape_are_refused(name):
    # Broadcasting [2, 3] against [2, 1] would give a number, and a wrong one.
    with pytest.raises(ValueError, match=r"targets \[2, 1\] do not fit outputs \[2, 3\]"):
        make_loss(name)(torch.zeros(2, 3), torch.zeros(2, 1))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_loss(name):
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: make_loss(name)(s, torch.tensor([0, 3, 1])), scores)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown loss 'hinge'; choose from mae, .*weighted-bce"):
        make_loss("hinge")
