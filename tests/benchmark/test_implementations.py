"""What is timed: every class, against torch's where it has one."""

import pytest
import torch

from fusedopt import optim
from fusedopt.benchmark.implementations import CASES, in_torch

CLASSES = [name for name, cls in vars(optim).items() if isinstance(cls, type) and optim.FusedStep in cls.__mro__[1:]]


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_timed(name: str) -> None:
    """Against torch's class, or against the one in plain PyTorch that stands beside the rule."""
    cases = [case for case in CASES.values() if case.class_name == name]
    assert cases, f"fusedopt.optim.{name} has no OptimizerCase in fusedopt/benchmark/implementations.py"
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    ours, *others = [make([p]) for make in cases[0].factories().values()]
    assert type(ours) is getattr(optim, name)
    assert others
    for optimizer in ours, *others:
        optimizer.step()
    if not in_torch(name) and name != "LAMB":
        assert [type(other).__name__ for other in others] == [f"Plain{name}"]
    else:
        assert not any(isinstance(other, optim.FusedStep) for other in others)


def test_what_torch_has() -> None:
    names = ("AdamW", "SGD-classic", "RAdam", "LAMB", "LARS", "Lion", "SWATS", "DBD-momentum", "DeltaBarDelta")
    assert [name for name in names if in_torch(name)] == ["AdamW", "SGD-classic", "RAdam"]
