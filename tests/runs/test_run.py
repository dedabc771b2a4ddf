"""The folder of a run: what goes in comes out, and what is wrong is said in one line."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
import os
import re

import pytest
import torch
from run_folders import config_of, make_run, network, small_hands

from fusedopt.data import DataError, Normalize, hold_out, make_hands
from fusedopt.files import FileError
from fusedopt.models import MODELS, HandClassifier
from fusedopt.tasks import TASKS, Task
from fusedopt.training import RunConfig, RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return small_hands()


@pytest.fixture
def config(data):
    return config_of(data)


def refused(action, match):
    with pytest.raises(FileError, match=match) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_a_run_comes_back_as_it_was(tmp_path, data):
    options = {
        "optimizer_options": {"lr": 1e-3, "betas": [0.9, 0.99]},
        "settings": {"note": "weiß", "deep": [{"a": 1}]},
    }
    fields = {"augmentations": ("crop", "flip"), "held_out": 0.25, "schedule": "cosine", "amp": "bfloat16", **options}
    made = make_run(tmp_path / "new" / "run", data, **fields)
    run = RunFolder.open(tmp_path / "new" / "run")
    assert run.config == made.config
    assert run.rows == made.rows
    assert [row["epoch"] for row in run.rows] == [1, 2]
    assert run.config.fusedopt
    assert run.config.torch == torch.__version__


def test_the_model_is_the_one_that_was_trained(tmp_path, data):
    config = config_of(data)
    run = RunFolder.create(tmp_path, config)
    model = network(config)
    images = data.test_images[:5]
    run.save_model(model)
    loaded = RunFolder.open(tmp_path).load_model()
    assert not loaded.training
    assert torch.equal(loaded(run.normalize(images)), model.eval()(Normalize(data.train_images)(images)))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_loads_by_its_name(name, tmp_path, data):
    model = network(config := config_of(data, model=name))
    run = RunFolder.create(tmp_path, config)
    run.save_model(model)
    loaded = run.load_model().state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_model_options_are_used(tmp_path, data):
    run = RunFolder.create(tmp_path, config_of(data, model="cnn2", model_options={"n_feature": 7}))
    run.save_model(network(run.config))
    assert run.load_model().n_feature == 7


def test_normalization_is_that_of_training_bit_for_bit(tmp_path):
    data = make_hands(31, 3)  # whose statistics are no short numbers
    RunFolder.create(tmp_path, config_of(data))
    ours, theirs = RunFolder.open(tmp_path).normalize, Normalize(data.train_images)
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.scale, theirs.scale)
    data.train_images[:] = 7
    assert torch.equal(Normalize(data.train_images)(data.train_images), torch.zeros(31, 3, 28, 28))


def test_the_log_is_a_table_and_json(tmp_path, config):
    run = RunFolder.create(tmp_path, config)
    run.append({"epoch": 1, "train_loss": 0.1})
    run.append({"epoch": 2, "train_loss": math.nan, "lr": torch.tensor(0.5)})
    with (tmp_path / "log.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert rows == [
        {"epoch": "1", "train_loss": "0.1", "lr": ""},
        {"epoch": "2", "train_loss": "nan", "lr": "0.5"},
    ]
    strict = json.loads((tmp_path / "log.json").read_text(), parse_constant=pytest.fail)
    assert strict == [{"epoch": 1, "train_loss": 0.1}, {"epoch": 2, "train_loss": None, "lr": 0.5}]
    assert math.isnan(RunFolder.open(tmp_path).rows[1]["train_loss"])


def test_a_resumed_run_overwrites_later_epochs(tmp_path, config):
    run = RunFolder.create(tmp_path, config)
    for epoch in (1, 2, 3):
        run.append({"epoch": epoch, "train_loss": 1.0})
    longer = dataclasses.replace(config, epochs=9, fusedopt="0.0.1")
    again = RunFolder.create(tmp_path, longer, resume=True)
    again.append({"epoch": 2, "train_loss": 0.5})
    assert again.rows == [{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": 0.5}]
    opened = RunFolder.open(tmp_path)
    assert opened.rows == again.rows
    assert opened.config == longer
    assert (tmp_path / "log.csv").read_text().count("\n") == 3


def test_resuming_where_nothing_is_begins(tmp_path, config):
    assert RunFolder.create(tmp_path / "run", config, resume=True).rows == []


def test_an_earlier_run_is_refused_and_unchanged(tmp_path, config):
    run = RunFolder.create(tmp_path, config)
    run.append({"epoch": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused(lambda: RunFolder.create(tmp_path, config), "holds an earlier run; resume it, or name another folder")
    other = dataclasses.replace(config, seed=4)
    refused(
        lambda: RunFolder.create(tmp_path, other, resume=True),
        "holds another run .seed is 0 there and 4 here.; give the same options",
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "config.json").unlink()
    refused(lambda: RunFolder.create(tmp_path, config), "holds an earlier run")


def test_what_is_no_run_is_refused(tmp_path, config):
    refused(lambda: RunFolder.open(tmp_path / "no"), "holds no run, as there is no config.json; name the folder")
    run = RunFolder.create(tmp_path, config)
    refused(run.load_model, "the run has finished no epoch yet; go on with fusedopt train hands ... --out .* --resume")
    (tmp_path / "log.json").write_text('{"epoch": 1}')
    refused(lambda: RunFolder.open(tmp_path), "log.json: damaged")
    (tmp_path / "log.json").write_text('[{"epoch": null}]')
    refused(lambda: RunFolder.open(tmp_path), "log.json: damaged")
    (tmp_path / "log.json").unlink()
    good = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"settings": None},
        {"settings": [1]},
        {"optimizer_options": None},
        {"mean": [None, 0.5, 0.5]},
        {"held_out": "a tenth"},
        {"epochs": True},
    ):
        (tmp_path / "config.json").write_text(json.dumps(good | change))
        refused(lambda: RunFolder.open(tmp_path), f"config.json: damaged, .*{next(iter(change))} cannot be .*; restore")
    for change, message in (
        ({"held_out": 5}, "held_out must be between 0 and 1, not 5"),
        ({"held_out": math.nan}, "held_out must be between 0 and 1, not nan"),
        ({"mean": [math.nan, 0.5, 0.5]}, "mean must be finite, not .nan, 0.5, 0.5."),
        ({"std": [0.1, 0.1, math.inf]}, "std must be finite"),
        ({"std": [0.1, 0.1, -0.1]}, "std must be at least 0"),
        ({"mean": [], "std": [], "channels": 0}, "channels must be at least 1, not 0"),
        ({"size": -1}, "size must be at least 1, not -1"),
        ({"epochs": -1}, "epochs must be at least 0, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"classes": []}, "there must be a class"),
        ({"classes": "rock"}, "classes cannot be 'rock'"),
        ({"mean": 0.5}, "mean cannot be 0.5"),
        ({"later": 1}, "later is unknown"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(good | change))
        refused(lambda: RunFolder.open(tmp_path), f"config.json: damaged, or of another version .{message}.*; restore")
    for content, message in (
        ("", "Expecting value"),
        ("[]", "it is no object with the options by name"),
        ("5", "it is no object with the options by name"),
        ("{}", "it has no dataset, model, channels"),
    ):
        (tmp_path / "config.json").write_text(content)
        refused(lambda: RunFolder.open(tmp_path), f"config.json: damaged, or of another version .{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5", "it is no list with an object for each epoch"),
        ("[5]", "it is no list with an object for each epoch"),
        ('[{"epoch": 1, "lr": "fast"}]', "'fast' is not a number"),
        ('[{"epoch": [1]}]', "[1] is not a number"),
        ('[{"lr": 1}]', "a row has no epoch"),
    ],
)
def test_logs_that_are_none_are_said_to_be(tmp_path, config, content, message):
    RunFolder.create(tmp_path, config)
    (tmp_path / "log.json").write_text(content)
    refused(lambda: RunFolder.open(tmp_path), re.escape(f"log.json: damaged, or of another version ({message})"))


def test_damaged_or_other_weights_are_refused(tmp_path, data):
    run = make_run(tmp_path, data, epochs=1)
    content = bytearray((tmp_path / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    refused(run.load_model, "model.pt: truncated or corrupt")
    run.save_model(torch.nn.Linear(2, 2))
    refused(run.load_model, r"not of the network in config.json .*; restore both files")
    run.save_model(HandClassifier())
    unknown = RunFolder(tmp_path, dataclasses.replace(run.config, model="vit"), [])
    refused(unknown.load_model, "unknown model 'vit'")


def test_configurations_that_cannot_be_saved_are_refused(tmp_path, config, data):
    broken = dataclasses.replace(config, settings={"x": object()})
    refused(lambda: RunFolder.create(tmp_path / "run", broken), "cannot be saved .*; give plain values")
    with pytest.raises(ValueError, match="1 means and 3 standard deviations for 3 channels"):
        dataclasses.replace(config, mean=(0.5,))
    with pytest.raises(ValueError, match="a row of the log needs its epoch, not only lr"):
        RunFolder.create(tmp_path / "run", config).append({"lr": 1.0})


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, config, monkeypatch):
    run = RunFolder.create(tmp_path, config)
    run.append({"epoch": 1})
    run.save_model(network(config))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    refused(lambda: run.append({"epoch": 2}), "log.json: cannot be written .No space left on device.; free some space")
    refused(lambda: run.save_model(network(config)), "model.pt: cannot be written .No space left")
    refused(lambda: RunFolder.create(tmp_path, config, resume=True), "config.json: cannot be written .No space left")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run.rows == [{"epoch": 1}]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, config):
    (tmp_path / "file").write_text("")
    refused(lambda: RunFolder.create(tmp_path / "file" / "run", config), "cannot be made .*; name another folder")


def test_data_are_those_of_the_run(tmp_path, data, monkeypatch):
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, "lenet"))
    run = RunFolder.create(tmp_path / "a", config_of(data, held_out=0.25))
    assert torch.equal(run.load_data().test_images, hold_out(data, 0.25).test_images)
    assert torch.equal(RunFolder.create(tmp_path / "b", config_of(data)).load_data().test_images, data.test_images)
    other = RunConfig(**{**dataclasses.asdict(run.config), "size": 32})
    with pytest.raises(DataError, match="hands: has other classes or images than those of the run"):
        RunFolder(tmp_path, other, []).load_data()
    with pytest.raises(DataError, match="unknown data set 'ships'; choose one of"):
        RunFolder(tmp_path, dataclasses.replace(run.config, dataset="ships"), []).load_data()
