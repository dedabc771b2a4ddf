"""The pages under docs/: every snippet runs, and prints what the page says."""

import os
import re
from pathlib import Path
from unittest import mock

import matplotlib.pyplot
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt.examples.pictures import TEMPERATURES
from fusedopt.models.lenet import GarmentClassifier

matplotlib.use("agg")
PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


def surroundings():
    """What a snippet may take for granted: a training script in small."""
    model, criterion = GarmentClassifier(), nn.CrossEntropyLoss()
    params = list(model.parameters())
    optimizer = fusedopt.AdamW(params)
    dataset = TensorDataset(torch.randn(96, 1, 28, 28), torch.zeros(96, dtype=torch.long))
    train_loader = DataLoader(dataset, batch_size=16, shuffle=True)

    def train(model, optimizer):
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()

    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler, epochs, temperatures = torch.amp.GradScaler("cpu"), 2, TEMPERATURES
    _, ax = matplotlib.pyplot.subplots()
    return globals() | locals()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_print_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert snippets
    namespace = surroundings() | {"__name__": page.stem}
    with mock.patch.dict(os.environ):  # a page says what torchrun sets
        for snippet in snippets:
            exec(compile(snippet, str(page), "exec"), namespace)
            expected = re.findall(r"^# -> (.*)$", snippet, re.MULTILINE)
            assert capsys.readouterr().out.splitlines() == expected


def test_pictures_and_commands_of_the_pages_are_there():
    for page in PAGES:
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file()
