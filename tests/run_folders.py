"""A small run in a folder, as the training command leaves it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Hide
from torch import nn
from typer.testing import CliRunner

from fusedopt import cli
from fusedopt.data import ImageData, make_hands
from fusedopt.models import make_model
from fusedopt.training import RunConfig, RunFolder, accuracy, make_optimizer, seeded, train


def small_hands(test: int = 18) -> ImageData:
    return make_hands(96, test)


def network(config: RunConfig) -> nn.Module:
    """An untrained network of a run."""
    shape = {"channels": config.channels, "classes": len(config.classes), "size": config.size}
    return seeded(lambda: make_model(config.model, **shape, **config.model_options), config.seed)


def config_of(data: ImageData, **fields: Any) -> RunConfig:
    given = {"model": "lenet", "optimizer": "adamw", "epochs": 2, "batch_size": 16, "seed": 0, **fields}
    return RunConfig.of(data, dataset=data.name, **given)


def make_run(folder: Path, data: ImageData, **fields: Any) -> RunFolder:
    """Trains on the data set and fills a run folder."""
    config = config_of(data, **fields)
    run = RunFolder.create(folder, config)
    model = network(config)
    optimizer = make_optimizer(config.optimizer, model.parameters())
    for epoch in train(model, optimizer, data, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed):
        row = {"train_loss": epoch.loss, "test_accuracy": epoch.accuracy, "lr": optimizer.param_groups[0]["lr"]}
        row["train_accuracy"] = accuracy(model, data.train_images, data.train_labels, run.normalize)
        run.append({"epoch": epoch.number, **row})
    run.save_model(model)
    return run


def run_command(*arguments: object, code: int = 0) -> Any:
    """Runs a command of the command line in this process."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that a package is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hide(module), *sys.meta_path])
