"""What `explain()` says, printed: a table that sums up what is alike."""

from __future__ import annotations

from typing import Any

import gpu
import pytest
import torch
from pair import make_params
from torch import Tensor, nn

import fusedopt
from fusedopt import _C

pytestmark = pytest.mark.steps
DEVICE = torch.device(gpu.TEST_DEVICE)
WHERE = DEVICE.type.upper() if DEVICE.type == _C.GPU else f"CPU, {_C.isa()}"


def step(optimizer: Any, grads: list[Tensor | None]) -> None:
    for p, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
        p.grad = grad
    optimizer.step()


def test_parameters_that_are_alike_are_a_line() -> None:
    params = make_params([(3,)] * 62)
    optimizer = fusedopt.SGD(params, lr=0.1)
    assert str(optimizer.explain()) == "62 of 62 not updated: no step yet"
    step(optimizer, [torch.ones_like(p) for p in params])
    assert str(optimizer.explain()) == repr(optimizer.explain()) == f"62 of 62 fused: SGD, {WHERE}"
    assert isinstance(optimizer.explain(), list)
    assert [e.path for e in optimizer.explain()] == ["fused"] * 62


def test_a_sparse_gradient_is_called_so() -> None:
    params = make_params([(5, 2), (3,)])
    optimizer = fusedopt.SGD(params, lr=0.1)
    step(optimizer, [torch.ones_like(params[0]).to_sparse(), None])
    assert [(e.path, e.reason) for e in optimizer.explain()] == [
        ("torch", "the gradient is sparse"),
        ("none", "no gradient"),
    ]


def test_lines_show_which_parameters_they_are_of() -> None:
    params = make_params([(5, 2), (3,), (), (4,), (2, 3), (7,)])
    optimizer = fusedopt.SGD(params, lr=0.1)
    step(optimizer, [torch.ones_like(params[0]).to_sparse(), *map(torch.ones_like, params[1:5]), None])
    assert str(optimizer.explain()).splitlines() == [
        "1 of 6 by torch's implementation: the gradient is sparse  parameter 0: [5, 2]",
        f"4 of 6 fused:                     {f'SGD, {WHERE}':22}  parameter 1: [3], 2: [], 3: [4] and 1 more",
        "1 of 6 not updated:               no gradient             parameter 5: [7]",
    ]


def test_lines_show_names_where_the_optimizer_has_them() -> None:
    embedding, head = nn.Embedding(5, 2, sparse=True, device=DEVICE), nn.Linear(2, 1, device=DEVICE)
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    optimizer = fusedopt.SGD(model.named_parameters(), lr=0.1)
    head(embedding(torch.zeros(1, dtype=torch.long, device=DEVICE))).sum().backward()
    optimizer.step()
    first, second = str(optimizer.explain()).splitlines()
    assert first.endswith("  embedding.weight")
    assert second.endswith("  head.weight, head.bias")


def test_places_name_the_group_where_there_are_several() -> None:
    a, b = make_params([(3,), (4,)])
    optimizer = fusedopt.SGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    b.grad = torch.ones_like(b)
    optimizer.step()
    first, second = str(optimizer.explain()).splitlines()
    assert first.endswith("  parameter 0 of group 0: [3]")
    assert second.endswith("  parameter 0 of group 1: [4]")
