"""The folder of one training run: what was trained and how, a log with a row per epoch, and the trained network."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fusedopt import files
from fusedopt.data.images import DataError, ImageData, Normalize, hold_out
from fusedopt.data.statistics import ChannelStatistics
from fusedopt.files import FileError
from fusedopt.models import make_model
from fusedopt.runs.config import RunConfig
from fusedopt.runs.shards import has_shards, whole
from fusedopt.tasks import find_task

_CONFIG, _LOG, _TABLE, _MODEL = "config.json", "log.json", "log.csv", "model.pt"
_MAY_DIFFER = ("epochs", "fusedopt", "torch")  # between the parts of a run that is resumed


class RunFolder:
    """A run on disk.

        run = RunFolder.create("run", RunConfig.of(data, dataset="hands", model="lenet", optimizer="adamw", ...))
        for epoch in training:
            run.append({"epoch": epoch.number, "train_loss": epoch.loss, "test_accuracy": epoch.accuracy})
        run.save_model(model)

        run = RunFolder.open("run")
        scores = run.load_model()(run.normalize(images))

    `config.json` holds the configuration, `log.csv` and `log.json` the rows, `model.pt` the weights with a checksum
    (`fusedopt.files.load(path, "model")` reads them without the network). Each file is replaced as a whole, so that a
    process may be killed at any moment. One process writes.

    Attributes:
        folder: where it is.
        config: what was trained.
        rows: of the log, in order of epoch. In `log.json` values that are not finite are null, and are NaN here.
    """

    def __init__(self, folder: Path, config: RunConfig, rows: list[dict[str, float]]) -> None:
        self.folder, self.config, self.rows = folder, config, rows

    @classmethod
    def create(cls, folder: Path | str, config: RunConfig, *, resume: bool = False) -> RunFolder:
        """Begins a run.

        Args:
            folder: made where it is missing; what else it holds is left alone.
            config: of the run.
            resume: go on with the run that is there, which must have the same configuration but for the number of
                epochs and the versions. Where there is none, it begins.

        Raises:
            FileError: the folder holds a run, or with `resume` one of another configuration, or cannot be written.
        """
        run = cls.prepare(folder, config, resume=resume)
        run.save_config()
        return run

    @classmethod
    def prepare(cls, folder: Path | str, config: RunConfig, *, resume: bool = False) -> RunFolder:
        """Checks what `create` does, and leaves the folder as it is until `save_config`."""
        folder = Path(folder)
        rows: list[dict[str, float]] = []
        if holds_run(folder):
            if not resume:
                raise FileError(f"{folder}: holds an earlier run; resume it, or name another folder")
            earlier = cls.open(folder)
            there, here = _plain(earlier.config), _plain(config)
            if different := [name for name in there if there[name] != here[name] and name not in _MAY_DIFFER]:
                name = different[0]
                values = f"{name} is {there[name]!r} there and {here[name]!r} here"
                raise FileError(f"{folder}: holds another run ({values}); give the same options, or another folder")
            rows = earlier.rows
        return cls(folder, config, rows)

    @classmethod
    def open(cls, folder: Path | str) -> RunFolder:
        """Opens a run that exists.

        Raises:
            FileError: there is none, or it is damaged.
        """
        folder = Path(folder)
        if not (folder / _CONFIG).is_file():
            raise FileError(f"{folder}: holds no run, as there is no {_CONFIG}; name the folder of a run")
        config = _read(folder / _CONFIG, _config)
        rows = _read(folder / _LOG, _rows) if (folder / _LOG).exists() else []
        return cls(folder, config, rows)

    def save_config(self) -> None:
        """Writes `config.json`, in a folder that is made where it is missing.

        Raises:
            FileError: it cannot be written.
        """
        content = _plain(self.config)
        make_folder(self.folder)
        _write_json(self.folder / _CONFIG, content)

    def append(self, row: Mapping[str, float]) -> None:
        """Adds an epoch to the log, in place of that epoch and all later ones, if there are.

        Args:
            row: "epoch", counted from 1, and any numbers of that epoch by name. The names need not be those of other
                rows. "train_loss", "test_loss", "train_accuracy", "test_accuracy" (0 to 1) and "lr" are drawn.

        Raises:
            ValueError: there is no "epoch".
            FileError: the log cannot be written; both of its files are whole, with or without the row.
        """
        if "epoch" not in row:
            raise ValueError(f"a row of the log needs its epoch, not only {', '.join(row) or 'nothing'}")
        rows = [earlier for earlier in self.rows if earlier["epoch"] < row["epoch"]]
        rows.append({name: _number(value) for name, value in row.items()})
        finite = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_json(self.folder / _LOG, finite)
        self.rows = rows
        files.write(self.folder / _TABLE, table.getvalue().encode())

    def save_model(self, model: nn.Module) -> None:
        """Saves the weights and buffers. A model that `fully_shard` has spread is saved by all processes together.

        Raises:
            FileError: they cannot be written; what was there before is still there.
        """
        state = model.state_dict()
        if not has_shards(state):
            files.save(self.folder / _MODEL, "model", state)
            return
        state = whole(state)
        if dist.get_rank() == 0:
            files.save(self.folder / _MODEL, "model", state)

    def load_model(self) -> nn.Module:
        """Returns the trained network, on the CPU and in evaluation mode.

        Raises:
            FileError: the run has no weights, they are damaged, not finite, or of another network than the
                configuration's.
        """
        path, config = self.folder / _MODEL, self.config
        if not path.is_file():
            if self.rows:
                raise FileError(f"{self.folder}: the run has lost its {_MODEL}; restore it")
            command = f"fusedopt train {config.dataset} ... --out {self.folder} --resume"
            raise FileError(f"{self.folder}: the run has finished no epoch yet; go on with {command}")
        state = files.load(path, "model")
        try:
            model = make_model(
                config.model,
                channels=config.channels,
                classes=len(config.classes),
                size=config.size,
                **config.model_options,
            )
            model.load_state_dict(state)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise FileError(f"{path}: not of the network in {_CONFIG} ({reason}); restore both files") from error
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise FileError(f"{path}: its weights are not finite, the training diverged; train with a lower --lr")
        return model.eval()

    def load_data(self, data_dir: Path | None = None, notify: Callable[[str], None] = print) -> ImageData:
        """Loads the data set of the run; its test images are those that were held out, if some were.

        Args:
            data_dir: the folder of the user's data sets; see `fusedopt.data.files.locate`.
            notify: is told about downloads.

        Raises:
            fusedopt.data.DataError: it cannot be loaded, or is not the one that the run was trained on.
        """
        config = self.config
        try:
            data = find_task(config.dataset).load(data_dir, notify)
        except ValueError as error:
            raise DataError(f"{self.folder}: {error}") from error
        found = (data.classes, *data.train_images.shape[1:])
        if found != (config.classes, config.channels, config.size, config.size):
            raise DataError(
                f"{config.dataset}: has other classes or images than those of the run in {self.folder}; restore either"
            )
        return data if config.held_out is None else hold_out(data, config.held_out)

    @property
    def normalize(self) -> Normalize:
        """What the network's images are standardized with, on the CPU: the same, bit for bit, as in training."""
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.config.mean, self.config.std))
        return Normalize.with_statistics(ChannelStatistics(mean, std))


def holds_run(folder: Path) -> bool:
    """Returns whether there is something of a run in the folder."""
    return any((folder / name).exists() for name in (_CONFIG, _LOG, _TABLE, _MODEL))


def make_folder(folder: Path) -> None:
    """Makes a folder where it is missing; raises FileError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error


def _plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as it comes back from its file."""
    fields = {name: getattr(config, name) for name in (f.name for f in dataclasses.fields(config))}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(fields, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise FileError(f"the configuration cannot be saved ({error}); give plain values") from error
    return plain


def _write_json(path: Path, content: Any) -> None:
    files.write(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _read(path: Path, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); name a run that can") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: damaged, or of another version ({reason}); restore it") from error


def _config(content: Any) -> RunConfig:
    if not isinstance(content, dict):
        raise ValueError("it is no object with the options by name")
    fields = dataclasses.fields(RunConfig)
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in content]:
        raise ValueError(f"it has no {', '.join(missing)}")
    if unknown := content.keys() - {f.name for f in fields}:
        raise ValueError(f"{', '.join(sorted(unknown))} is unknown")
    for name in ("classes", "mean", "std", "augmentations"):
        if not isinstance(content.get(name, []), list):
            raise ValueError(f"{name} cannot be {content[name]!r}")
    return RunConfig(**content)


def _rows(content: Any) -> list[dict[str, float]]:
    if not (isinstance(content, list) and all(isinstance(row, dict) for row in content)):
        raise ValueError("it is no list with an object for each epoch")
    if bad := [v for row in content for v in row.values() if not isinstance(v, int | float | None)]:
        raise ValueError(f"{bad[0]!r} is not a number")
    if not all("epoch" in row for row in content):
        raise ValueError("a row has no epoch")
    rows = [{name: _number(value) for name, value in row.items()} for row in content]
    if not all(row["epoch"] >= 1 for row in rows):
        raise ValueError("a row has no epoch")
    return sorted(rows, key=lambda row: row["epoch"])


def _number(value: Any) -> float:
    """A Python number, whole numbers as such; NaN for null."""
    if value is None:
        return math.nan
    number = float(value)
    return int(number) if isinstance(value, int) else number
