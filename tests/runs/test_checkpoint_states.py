"""What the objects of a run may have in their states, and that it comes back the same in any order of the arguments."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import State, names, one_line
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

import fusedopt
from fusedopt.files import FileError
from fusedopt.schedulers import BatchSizeScheduler, WarmupLR, on_device
from fusedopt.training import Checkpoint, ExponentialAverage, ResumableSampler

pytestmark = pytest.mark.usefixtures("one_thread")


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Pair:
    a: int = 1


Point = collections.namedtuple("Point", "x y")

NUMPY = {
    "float64": np.float64(0.1),
    "float32": np.float32(0.1),
    "float16": np.float16(0.1),
    "int64": np.int64(-3),
    "uint16": np.uint16(3),
    "complex64": np.complex64(0.1j),
    "0-d": np.array(0.1),
    "array": np.arange(6.0).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "backwards": np.arange(6, dtype=np.uint16)[::-1],
    "empty": np.zeros((0, 3), bool),
    "bools": np.array([True, False]),
}
FOREIGN: dict[str, tuple[Any, str]] = {
    "function": (print, "a builtin_function_or_method"),
    "lambda": (lambda: 0, "a function"),
    "class": (int, "a type"),
    "object": (State(1), f"a {State.__module__}.State"),
    "enum": (Color.RED, f"a {Color.__module__}.Color"),
    "int enum": (Level.LOW, f"a {Level.__module__}.Level"),
    "dataclass": (Pair(), f"a {Pair.__module__}.Pair"),
    "named tuple": (Point(1, 2), f"a {Point.__module__}.Point"),
    "deque": (collections.deque([1]), "a collections.deque"),
    "user dict": (collections.UserDict(), "a collections.UserDict"),
    "default dict": (collections.defaultdict(list), "a collections.defaultdict"),
    "frozen set": (frozenset([1]), "a frozenset"),
    "path": (Path("a"), "a pathlib.PosixPath"),
    "date": (datetime.date(2020, 1, 1), "a datetime.date"),
    "range": (range(3), "a range"),
    "datetime64": (np.datetime64("2020-01-01"), "a numpy.datetime64"),
    "objects": (np.array([None]), "a numpy.ndarray"),
    "strings": (np.array(["a"]), "a numpy.ndarray"),
    "byte order": (np.arange(3, dtype=np.dtype("i4").newbyteorder()), "a numpy.ndarray"),
    "generator": (torch.Generator(), "a torch._C.Generator"),
}


def reloaded(value: Any, folder: Path) -> Any:
    state = State(value)
    checkpoint = Checkpoint(folder, state=state)
    checkpoint.save(epoch=0, step=1)
    state.value = None
    checkpoint.load()
    return state.value


@pytest.mark.parametrize("kind", NUMPY)
def test_numbers_and_arrays_of_numpy_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    """A schedule goes on in float32 where its rate is one, so that a Python number would be another run."""
    value = NUMPY[kind]
    content = {"deep": [(value, {"a": torch.ones(2)})]}
    (((loaded, rest),),) = reloaded(content, tmp_path).values()
    assert type(loaded) is type(value)
    assert (loaded.dtype, loaded.shape) == (value.dtype, value.shape)
    assert np.array_equal(loaded, value)
    assert torch.equal(rest["a"], torch.ones(2))
    assert content["deep"][0][0] is value  # what is saved is left as it is


@pytest.mark.parametrize("value", [np.bool_(True), np.str_("a"), np.bytes_(b"a")])
def test_truth_and_text_of_numpy_become_those_of_python(value: Any, tmp_path: Path) -> None:
    loaded = reloaded([value], tmp_path)
    assert loaded == [value]
    assert type(loaded[0]) is type(value.item())


@pytest.mark.parametrize("key", [np.float32(0.1), np.int64(3), (1, np.int64(2)), np.str_("a")])
def test_keys_and_members_of_sets_become_those_of_python(key: Any, tmp_path: Path) -> None:
    members, mapping = reloaded([{key}, {key: np.int64(1)}], tmp_path)
    assert members == {key}
    assert mapping == {key: 1}
    assert not any(isinstance(found, np.generic) for found in [*members, *mapping])


def test_the_class_and_version_of_a_mapping_are_kept(tmp_path: Path) -> None:
    state = nn.BatchNorm1d(2).state_dict()
    loaded = reloaded(collections.OrderedDict(state, rate=np.float64(1)), tmp_path)
    assert type(loaded) is collections.OrderedDict
    assert reloaded(state, tmp_path / "b")._metadata == state._metadata
    state["rate"] = np.float64(1)
    assert reloaded(state, tmp_path / "c")._metadata == state._metadata
    milestones = collections.Counter(np.array([2, 4, 4]))
    assert reloaded(milestones, tmp_path / "d") == {2: 1, 4: 2}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_could_not_be_loaded_is_named(kind: str, tmp_path: Path) -> None:
    value, name = FOREIGN[kind]
    state = State(1)
    checkpoint = Checkpoint(tmp_path, state=state)
    checkpoint.save(epoch=0, step=1)
    state.value = [0, {"key": value}]
    with pytest.raises(FileError) as error:
        checkpoint.save(epoch=0, step=2)
    assert f"as state['value'][1]['key'] is {name}, which could not be loaded" in one_line(error)
    assert names(tmp_path) == ["000001-step-1.pt"]
    with pytest.raises(FileError, match=r"state\['value'\]\[1\]\['key'\]"):  # before a first epoch as well
        Checkpoint(tmp_path / "none", state=state).load()


def test_keys_and_members_of_sets_are_named(tmp_path: Path) -> None:
    for value, text in (
        ({Color.RED: 1}, "state['value'] has a key that is a"),
        ({Color.RED}, "state['value'] holds a"),
    ):
        with pytest.raises(FileError) as error:
            reloaded(value, tmp_path)
        assert f"{text} {Color.__module__}.Color" in one_line(error)


def test_each_kind_of_object_is_looked_into_before_the_first_epoch(tmp_path: Path) -> None:
    class Factor:
        def __init__(self) -> None:
            self.shape = Color.RED

        def __call__(self, step: int) -> float:
            return 1.0

    model = nn.Linear(2, 2)
    optimizer = fusedopt.AdamW([{"params": model.parameters(), "kind": Level.LOW}])
    found = [
        ({"optimizer": optimizer}, r"optimizer\['param_groups'\]\[0\]\['kind'\] is a \S*Level"),
        ({"schedule": lr_scheduler.LambdaLR(optimizer, Factor())}, r"schedule\['lr_lambdas'\]\[0\]\['shape'\] is a"),
    ]
    for objects, message in found:
        with pytest.raises(FileError, match=message) as error:
            Checkpoint(tmp_path, **objects).load()
        one_line(error)


def test_an_object_without_a_state_yet_is_no_obstacle(tmp_path: Path) -> None:
    class Late(State):
        def state_dict(self) -> dict[str, Any]:
            raise RuntimeError("not consolidated")

    assert Checkpoint(tmp_path, late=Late()).load().step == 0


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: np.cos(t / 9)),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, np.float32(0.9)),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, np.array([2, 5]), np.float64(0.3)),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, np.float64(0.1), 20, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=np.int64(0), factor=np.float32(0.7)),
    "warm-up": lambda o: WarmupLR(o, 3, after=lr_scheduler.CosineAnnealingLR(o, np.int64(9), np.float32(1e-3))),
}


@pytest.mark.parametrize("rate", [np.logspace(-3, -1, 3)[1], np.float32(0.01), np.array(0.01)], ids=["64", "32", "0-d"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_of_numpy_resume_bit_for_bit(schedule: str, rate: Any, tmp_path: Path) -> None:
    def build(folder: Path) -> tuple[nn.Module, Checkpoint]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = fusedopt.SGD(model.parameters(), lr=rate, momentum=np.float32(0.9))
        return model, Checkpoint(folder, model=model, optimizer=optimizer, schedule=SCHEDULES[schedule](optimizer))

    def train(model: nn.Module, checkpoint: Checkpoint, steps: range) -> list[float]:
        optimizer, scheduler = (checkpoint.objects[name] for name in ("optimizer", "schedule"))
        rates = []
        for step in steps:
            optimizer.zero_grad()
            model(torch.full((4, 3), float(step))).square().mean().backward()
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*[np.float64(abs(step - 2))] if plateau else [])
        return rates

    model, checkpoint = build(tmp_path / "none")
    expected = train(model, checkpoint, range(8))
    first = build(tmp_path / "run")
    head = train(*first, range(4))
    first[1].save(epoch=0, step=4)
    second = build(tmp_path / "run")
    second[1].load()
    assert head + train(*second, range(4, 8)) == expected
    assert all(map(torch.equal, second[0].parameters(), model.parameters()))


class Wrapper:
    """Another's optimizer around one of ours."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.inner = optimizer
        self.state_dict, self.load_state_dict = optimizer.state_dict, optimizer.load_state_dict


class Everything:
    """A run of all kinds of objects that know of each other."""

    def __init__(self, folder: Path, order: list[str] | None, kind: str) -> None:
        torch.manual_seed(len(order or ()))
        self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.optimizer = optimizer = fusedopt.AdamW(self.model.parameters(), lr=0.1)
        self.sampler = ResumableSampler(40)
        self.loader = DataLoader(range(40), 4, sampler=self.sampler, generator=self.sampler.generator)
        inner = lr_scheduler.ExponentialLR(optimizer, 0.07)
        if kind in ("device", "wrapped"):
            self.schedule: Any = on_device(inner, 30)
        elif kind == "warm-up":
            self.schedule = WarmupLR(optimizer, 2, after=inner)
        else:
            self.schedule = BatchSizeScheduler(inner, self.loader, max_batch_size=64, base_momentum=0.9)
        self.average = ExponentialAverage(self.model, 0.9)
        objects = {
            "model": self.model,
            "optimizer": Wrapper(optimizer) if kind == "wrapped" else optimizer,
            "schedule": self.schedule,
            "inner": inner,
            "sampler": self.sampler,
            "generator": self.sampler.generator,
            "average": self.average,
            "noise": fusedopt.GradientNoise(optimizer, eta=0.01),
            "scaler": torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3),
        }
        self.checkpoint = Checkpoint(folder, **{name: objects[name] for name in order or objects})

    def train(self, steps: int) -> list[Any]:
        seen: list[Any] = []
        while steps:
            for batch in self.loader:
                self.optimizer.zero_grad()
                self.model(torch.randn(len(batch), 3)).square().mean().backward()
                self.optimizer.step()
                self.average.update_parameters(self.model)
                self.sampler.advance(len(batch))
                group = self.optimizer.param_groups[0]
                seen.append((batch.tolist(), float(group["lr"]), self.loader.batch_sampler.batch_size))
                if self.sampler.position == 0:
                    self.optimizer.param_groups[0]["betas"] = (0.8, 0.999)
                    self.schedule.step()
                steps -= 1
                if not steps:
                    break
        return [*seen, *(p.tolist() for p in (*self.model.parameters(), *self.average.parameters()))]


@pytest.mark.parametrize("kind", ["device", "warm-up", "batch size", "wrapped"])
def test_the_order_of_the_arguments_decides_nothing(kind: str, tmp_path: Path) -> None:
    straight = Everything(tmp_path / "none", None, kind)
    straight.train(11)
    expected = straight.train(9)
    keywords = [*straight.checkpoint.objects]
    first = Everything(tmp_path / "run", None, kind)
    first.train(11)  # within an epoch, the rest of which is smaller than a batch
    first.checkpoint.save(epoch=1, step=11)
    draw = random.Random(0)
    orders = [keywords, keywords[::-1], *(draw.sample(keywords, len(keywords)) for _ in range(12))]
    for order in orders:
        other = Everything(tmp_path / "run", order, kind)
        other.checkpoint.load()
        assert other.train(9) == expected, order
