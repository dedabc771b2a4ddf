"""`fusedopt train`, run in this process: the folder it leaves, and going on from there."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from command_line import plain, run, train

from fusedopt.data import hold_out, load_fashion_mnist
from fusedopt.models import GarmentClassifier
from fusedopt.training import RunFolder, accuracy, auto_lr, make_optimizer, seeded
from fusedopt.training.auto_lr import find_training_lr
from fusedopt.training.metrics import EarlyStopping

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


def outcome(folder):
    """What a run leaves, without the times."""
    run = RunFolder.open(folder)
    timed = ("seconds", "step_seconds", "images_per_second")
    rows = [{name: value for name, value in row.items() if name not in timed} for row in run.rows]
    return rows, run.load_model().state_dict()


def test_a_run_is_left_in_a_folder(fashion):
    options = (
        "--batch-size",
        20,
        "--schedule",
        "cosine",
        "--augment",
        "flip",
        "--held-out",
        0.1,
        "--lr",
        2e-3,
        "--min-lr",
        1e-4,
    )
    output = train(fashion, "--epochs", 2, *options).stdout
    run = RunFolder.open(fashion / "runs" / "fashion-mnist-lenet-1")
    config = run.config
    assert (config.dataset, config.model, config.optimizer) == ("fashion-mnist", "lenet", "adamw")
    assert (config.epochs, config.batch_size, config.seed, config.schedule) == (2, 20, 0, "cosine")
    assert (config.augmentations, config.held_out, config.optimizer_options) == (("flip",), 0.1, {"lr": 2e-3})
    assert config.settings == {"min_lr": 1e-4}
    assert [row["epoch"] for row in run.rows] == [1, 2]
    best = max(row["test_accuracy"] for row in run.rows)
    data = hold_out(load_fashion_mnist(fashion), 0.1)
    assert accuracy(run.load_model(), data.test_images, data.test_labels, run.normalize) == pytest.approx(best)
    assert re.search(rf"{100 * best:.2f} % the best \(epoch [12], runs/fashion-mnist-lenet-1/model.pt\)", output)
    train(fashion, "--epochs", 1)
    assert (fashion / "runs" / "fashion-mnist-lenet-2" / "log.csv").is_file()


def test_the_weights_are_those_of_the_best_epoch(fashion, monkeypatch):
    train(fashion, "--epochs", 1, "--out", "first")
    better = iter([True, False])
    monkeypatch.setattr(EarlyStopping, "update", lambda self, metric: next(better))
    train(fashion, "--epochs", 2, "--out", "both")
    weights = [outcome(fashion / name)[1] for name in ("first", "both")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_run_is_not_overwritten(fashion):
    train(fashion, "--epochs", 1, "--out", "run")
    before = outcome(fashion / "run")
    (line,) = train(fashion, "--epochs", 1, "--seed", 1, "--out", "run", code=1).stderr.splitlines()
    assert line == "fusedopt: run: holds an earlier run; go on with it by --resume, or name another folder"
    after = outcome(fashion / "run")
    assert before[0] == after[0]
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


EVERYTHING = (
    *("--batch-size", 20, "--model", "cnn2", "--optimizer", "sgd", "--amp", "fp16", "--accumulate", 2, "--ema", 0.9),
    *("--augment", "flip", "--label-smoothing", 0.1, "--max-grad-norm", 1, "--patience", 4, "--lr", "auto"),
)


def test_a_run_resumes_bit_for_bit(fashion, monkeypatch):
    train(fashion, *EVERYTHING, "--epochs", 3, "--out", "straight")
    train(fashion, *EVERYTHING, "--epochs", 2, "--out", "resumed")
    monkeypatch.setattr(auto_lr, "find_lr", None)  # the learning rate is known by now
    output = train(fashion, *EVERYTHING, "--epochs", 3, "--out", "resumed", "--resume").stdout
    assert re.findall(r"epoch (\d)/3", output) == ["3"]
    straight, resumed = outcome(fashion / "straight"), outcome(fashion / "resumed")
    assert straight[0] == resumed[0]
    torch.testing.assert_close(straight[1], resumed[1], rtol=0, atol=0)
    again = train(fashion, *EVERYTHING, "--epochs", 3, "--out", "resumed", "--resume").stdout
    assert "holds all of the 3 epochs" in again


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--ema", 0.9], "ema is the default there and 0.9 here"),
        (["--lr", 0.1], "optimizer_options is {'lr': 0.001} there and {'lr': 0.1} here"),
        (
            ["--max-grad-norm", 1],
            "optimizer_options is {'lr': 0.001} there and {'max_grad_norm': 1.0, 'lr': 0.001} here",
        ),
        (["--batch-size", 30], "batch_size is 20 there and 30 here"),
        (["--epochs", 3], "epochs is 2 there and 3 here"),
        (["--schedule", "cosine", "--epochs", 3], "schedule is 'one-cycle' there and 'cosine' here"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_run_resumes_with_the_same_options_only(fashion, options, reason):
    usual = ("--batch-size", 20, "--epochs", 2, "--schedule", "one-cycle", "--out", "run")
    train(fashion, *usual)
    config = (fashion / "run" / "config.json").read_bytes()
    (line,) = train(fashion, *usual, *options, "--resume", code=1).stderr.splitlines()
    assert line == f"fusedopt: run: holds another run ({reason}); give the same options, or another folder"
    assert (fashion / "run" / "config.json").read_bytes() == config


def test_resuming_before_the_first_epoch_says_so(fashion):
    output = train(fashion, "--epochs", 1, "--out", "run", "--resume").stdout
    assert "run has no finished epoch to go on from; starting with the first\n" in output
    assert "no finished epoch" not in train(fashion, "--epochs", 2, "--out", "run", "--resume").stdout


def test_a_run_that_diverges_in_its_last_step_is_an_error(fashion):
    options = ("--epochs", 1, "--optimizer", "sgd", "--lr", 1e30, "--batch-size", 100_000, "--out", "run")
    (line,) = train(fashion, *options, code=1).stderr.splitlines()
    assert line == "fusedopt: the loss is not finite since epoch 1; train again with a lower --lr"


def test_a_diverged_run_is_an_error(fashion):
    options = ("--epochs", 2, "--optimizer", "sgd", "--lr", 1e30, "--out", "run")
    (line,) = train(fashion, *options, code=1).stderr.splitlines()
    assert line == "fusedopt: the loss is not finite since epoch 1; train again with a lower --lr"
    for command in (["report", "--data-dir", fashion], ["explain", "--data-dir", fashion], ["export"]):
        (line,) = run(*command, "run", code=1).stderr.splitlines()
        message = "its weights are not finite, the training diverged; train with a lower --lr"
        assert line == f"fusedopt: run/model.pt: {message}"


def test_resume_needs_a_folder(fashion):
    assert "--resume needs --out" in plain(train(fashion, "--resume", code=2).stderr)


def test_a_corrupt_checkpoint_is_named(fashion):
    train(fashion, "--epochs", 1, "--out", "run")
    path = sorted((fashion / "run" / "checkpoints").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-9])
    (line,) = train(fashion, "--epochs", 2, "--out", "run", "--resume", code=1).stderr.splitlines()
    assert line.startswith(f"fusedopt: run/checkpoints/{path.name}: truncated or corrupt")


@pytest.mark.parametrize("name", ["config.json", "000001-step-0.pt", "log.json", "model.pt", "000002-step-7-best.pt"])
def test_a_full_disk_is_one_line(fashion, monkeypatch, name):
    real = os.open

    def full(path, flags, *mode):
        if Path(path).name == f".{name}.partial":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        (line,) = train(fashion, "--epochs", 1, "--out", "run", code=1).stderr.splitlines()
    assert re.match(rf"fusedopt: run/.*{name}: cannot be written \(No space left on device\); free some space", line)
    train(fashion, "--epochs", 1, "--out", "run", "--resume")  # and nothing is in the way of going on
    train(fashion, "--epochs", 1, "--out", "other")
    assert outcome(fashion / "run")[0] == outcome(fashion / "other")[0]


def test_an_interruption_says_how_to_go_on(fashion, monkeypatch):
    def interrupt(self, metric):
        raise KeyboardInterrupt

    monkeypatch.setattr(EarlyStopping, "update", interrupt)
    (line,) = train(fashion, "--out", "run", code=130).stderr.splitlines()
    assert line == "fusedopt: interrupted; go on with --out run --resume"


def test_automatic_lr_is_that_of_the_finder(fashion):
    output = train(fashion, "--epochs", 1, "--lr", "auto", "--out", "auto").stdout
    lr = RunFolder.open(fashion / "auto").config.optimizer_options["lr"]
    assert f"adamw with lr {lr:g} (found by a range test), seed 0" in output
    model = seeded(GarmentClassifier, 0)
    optimizer = make_optimizer("adamw", model.parameters())
    assert lr == find_training_lr(model, optimizer, load_fashion_mnist(fashion)).suggestion
    assert lr != optimizer.param_groups[0]["lr"]
    train(fashion, "--epochs", 1, "--lr", lr, "--out", "given")
    auto, given = outcome(fashion / "auto"), outcome(fashion / "given")
    assert auto[0] == given[0]
    torch.testing.assert_close(auto[1], given[1], rtol=0, atol=0)
