"""`fusedopt.optim` takes the place of `torch.optim`."""

import importlib
import inspect

import pytest
import torch

import fusedopt
from fusedopt import optim

PUBLIC = [name for name in dir(torch.optim) if not name.startswith("_")]
OURS = {"ASGD", "NAdam", "Rprop", "RAdam", "Adadelta", "Adamax", "SGD", "RMSprop", "Adagrad", "Adam", "AdamW"}


@pytest.mark.parametrize("name", sorted({*PUBLIC, *torch.optim.__all__}))
def test_every_public_name_of_torch_is_there(name: str) -> None:
    ours, theirs = getattr(optim, name), getattr(torch.optim, name)
    if name in OURS:
        assert issubclass(ours, theirs)
        assert ours is not theirs
        assert ours is getattr(fusedopt, name)
    else:
        assert ours is theirs


def test_a_star_import_brings_what_torchs_brings() -> None:
    assert set(optim.__all__) >= set(torch.optim.__all__)
    assert len(optim.__all__) == len(set(optim.__all__))
    assert all(hasattr(optim, name) for name in optim.__all__)


@pytest.mark.parametrize("name", ["lr_scheduler", "swa_utils"])
def test_submodules_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"fusedopt.optim.{name}") is getattr(torch.optim, name)


def test_a_script_that_names_torch_optim_runs_with_one_line_changed() -> None:
    script = inspect.cleandoc("""
        import torch.optim as optim
        from torch import nn
        model = nn.Linear(3, 2)
        optimizer = optim.AdamW(model.parameters(), lr=0.1)
        scheduler = optim.lr_scheduler.StepLR(optimizer, 1)
        average = optim.swa_utils.AveragedModel(model)
        model(__import__("torch").ones(1, 3)).sum().backward()
        optimizer.step(), scheduler.step(), average.update_parameters(model)
        assert isinstance(optimizer, optim.Optimizer)
    """)
    for line, cls in (("torch.optim", torch.optim.AdamW), ("fusedopt.optim", fusedopt.AdamW)):
        names: dict[str, object] = {}
        exec(script.replace("import torch.optim as", f"import {line} as"), names)
        assert type(names["optimizer"]) is cls
