"""What is searched: the options of `fusedopt train` that decide how a network is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusedopt.training.optimizers import OPTIMIZERS, optimizer_names

if TYPE_CHECKING:
    from optuna import Trial

PARAMETERS = ("optimizer", "lr", "momentum", "weight-decay", "batch-size")
_OF_SOME = ("momentum", "weight-decay")  # that not every optimizer has
_LOG = ("lr", "weight-decay", "batch-size")  # what matters of these is their ratio
_RANGES = {
    "optimizer": "sgd,adamw",
    "lr": "1e-4..0.1",
    "momentum": "0.5..0.99",
    "weight-decay": "1e-6..1e-2",
    "batch-size": "16,32,64,128",
}
_GRID = {"optimizer": "sgd,adamw", "lr": "0.1,0.03,0.01,3e-3,1e-3,3e-4,1e-4", "batch-size": "16,64"}


@dataclass(frozen=True)
class Dimension:
    """The values of one parameter: `choices`, or where there are none everything from `low` to `high`."""

    choices: tuple[str | float | int, ...] = ()
    low: float = 0.0
    high: float = 0.0


Space = dict[str, Dimension]


@dataclass(frozen=True)
class Setting:
    """One point of a space; None takes the default of `make_optimizer`."""

    optimizer: str
    lr: float
    batch_size: int
    momentum: float | None = None
    weight_decay: float | None = None

    def options(self) -> str:
        """Returns it as options of `fusedopt train`."""
        given = {
            "optimizer": self.optimizer,
            "lr": self.lr,
            "momentum": self.momentum,
            "weight-decay": self.weight_decay,
            "batch-size": self.batch_size,
        }
        return " ".join(f"--{name} {value}" for name, value in given.items() if value is not None)


def make_space(texts: Iterable[str], *, grid: bool = False) -> Space:
    """Makes a space of its text form, e.g. `["optimizer=sgd,torch.adamw", "lr=1e-3..0.1", "momentum=0.9"]`.

    Args:
        texts: `name=value,value,...` or `name=low..high` for names in `PARAMETERS`. Ranges of `lr`, `weight-decay` and
            `batch-size` are searched on a logarithmic scale. Parameters that are not named have their defaults.
        grid: choices only, with defaults that are choices.

    Raises:
        ValueError: a text cannot be read, or names values that no training can have; the message says which.
    """
    given = dict(_GRID if grid else _RANGES)
    named: set[str] = set()
    for text in texts:
        name, equals, values = text.partition("=")
        if name not in PARAMETERS or not equals:
            raise ValueError(f"cannot read {text!r}; write NAME=VALUE,VALUE or NAME=LOW..HIGH for {_any(PARAMETERS)}")
        if name in named:
            raise ValueError(f"{name} is given twice; name all of its values at once, with commas or as a range")
        given[name] = values
        named.add(name)
    space = {name: _dimension(name, given[name], grid) for name in PARAMETERS if name in given}
    for name in (name for name in _OF_SOME if name in named):
        without = [str(o) for o in space["optimizer"].choices if not takes(str(o), name)]
        if len(without) >= (1 if grid else len(space["optimizer"].choices)):
            what = name.replace("-", " ")
            raise ValueError(f"{without[0]} takes no {what}; search other optimizers, or leave {name} out")
    return space


def takes(optimizer: str, parameter: str) -> bool:
    """Returns whether the optimizer of that name has a parameter of `PARAMETERS`, which all but a few have."""
    return parameter not in _OF_SOME or OPTIMIZERS[optimizer.rpartition(".")[2]].takes(parameter.replace("-", "_"))


def _any(names: Iterable[str]) -> str:
    return ", ".join(names)


def _dimension(name: str, text: str, grid: bool) -> Dimension:
    low, dots, high = text.partition("..")
    if not dots:
        return Dimension(tuple(_value(name, part) for part in text.split(",")))
    if name == "optimizer":
        raise ValueError(f"optimizer={text}: optimizers have no order; name them with commas")
    if grid:
        raise ValueError(f"{name}={text}: a grid needs choices with commas, not a range")
    bounds = float(_value(name, low)), float(_value(name, high))
    if not bounds[0] < bounds[1]:
        raise ValueError(f"{name}={text}: the first value must be below the second")
    if name in _LOG and bounds[0] == 0:
        raise ValueError(f"{name}={text}: a logarithmic range begins above 0")
    return Dimension((), *bounds)


def _value(name: str, text: str) -> str | float | int:
    if name == "optimizer":
        if text not in optimizer_names():
            raise ValueError(f"unknown optimizer {text!r}; choose from {_any(optimizer_names())}")
        return text
    try:
        number = int(text) if name == "batch-size" else float(text)
    except ValueError as error:
        kind = "a whole number" if name == "batch-size" else "a number"
        raise ValueError(f"{name}: {text!r} is not {kind}") from error
    lowest = {"batch-size": 1, "lr": math.ulp(0)}.get(name, 0)
    if not lowest <= number < {"momentum": 1, "batch-size": 2**31}.get(name, math.inf):
        raise ValueError(f"{name}: {text} is out of range")
    return number


def suggest(trial: Trial, space: Mapping[str, Dimension]) -> Setting:
    """Asks a trial for a point of the space. Numbers are rounded to three digits, so that they can be written down."""
    chosen: dict[str, Any] = {}
    for name, dimension in space.items():
        if name != "optimizer" and not takes(chosen["optimizer"], name):
            continue
        if dimension.choices:
            value = trial.suggest_categorical(name, dimension.choices)
        elif name == "batch-size":
            value = trial.suggest_int(name, int(dimension.low), int(dimension.high), log=True)
        else:
            value = float(f"{trial.suggest_float(name, dimension.low, dimension.high, log=name in _LOG):.3g}")
        chosen[name.replace("-", "_")] = value
    return Setting(**chosen)
