"""On what steps can be compared: models and shapes, by name and at hand."""

import pytest
import torch
from torch import nn

from fusedopt.benchmark.subjects import find_subject, of_model


def test_subjects_by_name(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nready = nn.Linear(2, 3)\nclass Made(nn.Linear):\n    def __init__(self):\n"
        "        super().__init__(4, 5)\ndef no_model():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    shapes = {
        "3*4,2x5": [(4,), (4,), (4,), (2, 5)],
        "nets:ready": [(3, 2), (3,)],
        "nets:Made": [(5, 4), (5,)],
        "lenet": [(6, 1, 5, 5), (6,)],
    }
    for text, expected in shapes.items():
        subject = find_subject(text)
        assert [tuple(p.shape) for p in subject.parameters][: len(expected)] == expected
        assert (subject.model is not None) == text.startswith("nets")
    for text, message in {
        "nets:absent": "nets has no absent",
        "nets:no_model": "nets:no_model made int, not a torch.nn.Module",
        "torch.nn:Linear": "torch.nn:Linear cannot be called without arguments .*: name a function",
        "no_such_module:f": "there is no module no_such_module",
        "resnet51": "'resnet51' is neither torchvision:NAME",
        "3x": "'3x' is neither",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_subject(text)


def test_models_of_torchvision_and_timm(monkeypatch):
    pytest.importorskip("torchvision")
    subject = find_subject("torchvision:resnet18")
    assert (subject.elements, subject.input_shape) == (11_689_512, (3, 224, 224))
    with pytest.raises(ValueError, match=r"torchvision has no model 'resnet19'; it has .*resnet18"):
        find_subject("torchvision:resnet19")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match="there is no module timm; is it installed"):
        find_subject("timm:resnet18")


def test_drawn_parameters_are_copies_in_their_own_layout():
    model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    model.bias.requires_grad_(False)
    (copy,) = of_model(model).drawn(torch.float64, torch.device("cpu"))
    assert torch.equal(copy, model.weight.double())
    assert copy.stride() == copy.grad.stride() == model.weight.stride()
    assert copy.data_ptr() != model.weight.data_ptr()
    assert 0 < copy.grad.std() < 2e-3
