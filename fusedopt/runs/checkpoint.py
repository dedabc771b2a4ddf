"""Checkpoints, from which a run goes on after any interruption as if there had been none."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fusedopt import files
from fusedopt.files import FileError
from fusedopt.plain import foreign_part, pack
from fusedopt.runs.shards import has_shards, local_parts, whole
from fusedopt.runs.states import (
    Stateful,
    in_order,
    mismatch,
    random_state,
    restore,
    set_random_state,
    state_of,
)

_KIND = "checkpoint"
_NAME = re.compile(r"(\d{6,})-step-\d+(-best)?\.pt")


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        epoch: number of epochs that are over.
        step: number of optimizer steps taken.
        metric: the metric given with this checkpoint, None without.
        best_metric: the best metric so far, None without.
    """

    epoch: int = 0
    step: int = 0
    metric: float | None = None
    best_metric: float | None = None


class Checkpoint:
    """Saves a run in a folder, and brings it back.

        checkpoint = Checkpoint("run", model=model, optimizer=optimizer, scheduler=scheduler, sampler=sampler)
        position = checkpoint.load()  # changes nothing where there is none yet
        ...
        checkpoint.save(epoch=epoch, step=step, metric=accuracy)

    A file holds the state of every object given, the states of the random number generators of torch on every device,
    of NumPy and of Python, and the position. It is written under another name, flushed to the disk and renamed, so that
    a process may be killed at any moment, and carries a checksum. It holds no code, and none is run when it is loaded.
    A run that is resumed agrees bit for bit with one that was never interrupted, where the machine
    computes the same twice.

    States may hold tensors, what Python's own numbers, strings, lists, tuples, sets and dictionaries make, and numbers
    and arrays of NumPy. Anything else is an error that names it, before the first step where `load` is called there.
    States are put back in an order that does not depend on that of the arguments.

    DTensors are saved whole, and each process takes its part when it loads, which may be one of another number of
    processes. `states` says what every process has to call.

    Not in the file: what constructors are told (`max_grad_norm`, a scheduler's lambda), buffers that are not
    persistent, gradients, the state of the workers of a loader, and an order that a loader draws itself
    (`shuffle=True`): take a `ResumableSampler`.

    Args:
        folder: made at the first save. One process writes to it.
        keep: how many of the last files to keep, at least 1. The best is kept besides.
        mode: whether a metric is better when it is larger ("max") or smaller ("min").
        objects: by any name, what the run is made of: objects with `state_dict` and `load_state_dict`, and generators
            (`torch.Generator`).

    Raises:
        ValueError: `keep` or `mode` is out of range.
        TypeError: an object has no state.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int = 3,
        mode: Literal["max", "min"] = "max",
        **objects: Stateful | torch.Generator,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', not {mode!r}")
        for name, value in objects.items():
            if not isinstance(value, torch.Generator) and not (
                hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
            ):
                raise TypeError(f"{name} has no state to save; give objects with state_dict and load_state_dict")
        self.folder, self.keep, self.mode, self.objects = Path(folder), keep, mode, objects
        self._best: float | None = None
        self._began = False

    def paths(self) -> list[Path]:
        """Returns the checkpoints in the folder, in the order they were saved: `000012-step-3400.pt`, or `-best.pt`."""
        if not self.folder.is_dir():
            return []
        found = [(int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def refuse_earlier_run(self) -> None:
        """Raises FileError where the folder holds checkpoints of a run that this one did not load."""
        if not self._began and self.paths():
            raise FileError(f"{self.folder}: holds checkpoints of an earlier run; resume it, or name another folder")

    def states(self) -> dict[str, Any]:
        """Returns what `save` writes, with whole tensors in place of DTensors.

        Where a model is sharded every process calls this, and rank 0 alone gets all of it.
        """
        return {name: whole(state_of(value)) for name, value in self.objects.items()}

    def save(
        self, *, epoch: int, step: int, metric: float | None = None, states: Mapping[str, Any] | None = None
    ) -> Path:
        """Saves the run, and removes the files beyond the last `keep` and the best.

        Args:
            epoch: number of epochs that are over.
            step: number of optimizer steps taken.
            metric: decides which checkpoint is the best; NaN never is.
            states: what `states` returned just before; it is called here where there is but one process to call it.

        Returns:
            The new file.

        Raises:
            fusedopt.files.FileError: it cannot be written, a state holds what a file without code cannot (the message
                names it by its path), or the folder holds checkpoints of a run that this one did not load. All earlier
                files are there and load.
        """
        self.refuse_earlier_run()
        self._began = True
        earlier = self.paths()
        metric = None if metric is None else float(metric)
        best = metric is not None and metric == metric and (self._best is None or self._better(metric, self._best))
        best_metric = metric if best else self._best
        objects = {name: state_of(value) for name, value in self.objects.items()} if states is None else dict(states)
        if states is None and has_shards(objects):
            what = (
                "the states are spread over processes; call states() in all of them, and give save() what rank 0 gets"
            )
            raise FileError(f"{self.folder}: no checkpoint is written, as {what}")
        self._refuse_foreign(objects)
        content = {
            "position": {"epoch": epoch, "step": step, "metric": metric, "best_metric": best_metric},
            "objects": objects,
            "random": random_state(),
        }
        serial = int(earlier[-1].name.partition("-")[0]) + 1 if earlier else 1
        path = self.folder / f"{serial:06d}-step-{step}{'-best' if best else ''}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{self.folder}: cannot be made ({error.strerror}); name another folder") from error
        files.save(path, _KIND, content)
        self._best = best_metric
        self._remove_old([*earlier, path])
        return path

    def load(self, which: Literal["latest", "best"] | Path = "latest") -> Position:
        """Brings the run back, all of it or, on an error, nothing.

        Args:
            which: the latest or the best in the folder, or a file.

        Returns:
            How far the run had come. Where the folder holds no checkpoint, nothing is changed, and the position is 0.

        Raises:
            fusedopt.files.FileError: the file is missing, damaged, or of another run, or an object has a state that no
                checkpoint can hold. Every object is as it was.
        """
        self._refuse_foreign(self._early_states())
        path = which if isinstance(which, Path) else self._find(which)
        if path is None:
            self._began = True
            return Position()
        content = files.load(path, _KIND)
        try:
            position = Position(**content["position"])
            saved, random_saved = content["objects"], content["random"]
            self._check(path, saved)
            before, random_before = self._snapshot(), random_state()
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{path}: not the content of a checkpoint ({error!r}); do not trust it") from error
        name = "random"
        try:
            set_random_state(random_saved, warn=True)
            for name in in_order(self.objects):
                restore(self.objects[name], saved[name]["state"])
            set_random_state(random_saved)  # an object may have drawn some
        except Exception as error:
            for other, state in before.items():
                restore(self.objects[other], state)
            set_random_state(random_before)
            raise FileError(f"{path}: not of this run ({name}: {error}); build what it was saved from") from error
        self._began, self._best = True, position.best_metric
        return position

    def _find(self, which: str) -> Path | None:
        if which not in ("latest", "best"):
            raise ValueError(f"which must be 'latest', 'best' or a Path, not {which!r}")
        paths = self.paths()
        if which == "latest" or not paths:
            return paths[-1] if paths else None
        best = [path for path in paths if path.stem.endswith("-best")]
        if not best:
            raise FileError(f"{self.folder}: no checkpoint was saved with a metric; load the latest")
        return best[-1]

    def _better(self, metric: float, best: float) -> bool:
        return metric > best if self.mode == "max" else metric < best

    def _remove_old(self, paths: list[Path]) -> None:
        # The name tells a file that was the best when it was saved: the last of these is the best of all.
        best = [path for path in paths if path.stem.endswith("-best")][-1:]
        old = [path for path in paths[: -self.keep] if path not in best]
        torn = self.folder.glob(".*-step-*.pt.partial")  # by a process that was killed
        for path in [*old, *torn]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                text = f"{path}: the run is saved, but this older file cannot be removed ({error.strerror}); remove it"
                raise FileError(text) from error

    def _check(self, path: Path, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises FileError where what was saved is evidently not of these objects."""
        if saved.keys() != self.objects.keys():
            names = f"{', '.join(sorted(saved))}; this run has {', '.join(sorted(self.objects))}"
            raise FileError(f"{path}: holds {names}; give the checkpoint the same objects under the same names")
        for name, value in self.objects.items():
            if isinstance(value, nn.Module):
                if problem := mismatch(value, saved[name]["state"]):
                    raise FileError(f"{path}: of another {name}: {problem}; build the {name} it was saved from")
            elif saved[name]["class"] != type(value).__name__:
                classes = f"{name} is a {saved[name]['class']} there and a {type(value).__name__} here"
                raise FileError(f"{path}: {classes}; build the {name} it was saved from")

    def _refuse_foreign(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises FileError where a state has what no file without code can hold, and says where."""
        for name, saved in states.items():
            if part := foreign_part(pack(saved["state"]), name):
                raise FileError(f"{self.folder}: no checkpoint can be written, as {files.unloadable(part)}")

    def _early_states(self) -> dict[str, Any]:
        """The states there are before the first step, but for models: theirs may take all processes to be gathered."""
        states = {}
        for name, value in self.objects.items():
            if not isinstance(value, nn.Module):
                with suppress(Exception):  # it may have none yet, as before torch's ZeroRedundancyOptimizer gathers it
                    states[name] = local_parts(state_of(value))
        return states

    def _snapshot(self) -> dict[str, Any]:
        kept = {name: self.objects[name] for name in in_order(self.objects)}
        return {
            name: copy.deepcopy(state_of(value)["state"])
            for name, value in kept.items()
            if not isinstance(value, nn.Module)
        }


def read(path: Path | str) -> dict[str, Any]:
    """Returns the states in a checkpoint by name, for instance `model.load_state_dict(read(path)["model"])`.

    Tensors are on the CPU. Raises fusedopt.files.FileError as `Checkpoint.load` does.
    """
    content = files.load(Path(path), _KIND)
    return {name: saved["state"] for name, saved in content["objects"].items()}
