"""`fusedopt train`, run in this process."""

import errno
import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import plain, run, write_fashion

from fusedopt import History
from fusedopt.data import hold_out, load_fashion_mnist
from fusedopt.models import GarmentClassifier
from fusedopt.training import RunFolder, accuracy, make_optimizer, seeded
from fusedopt.training import train as train_loop
from fusedopt.training.early_stopping import EarlyStopping

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder with a small data set; the run folders come beside it."""
    write_fashion(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(fashion, *arguments, code=0):
    return run("train", "fashion-mnist", "--data-dir", fashion, "--device", "cpu", "--no-report", *arguments, code=code)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "torch.sgd"])
def test_train_reports_accuracy_and_share_of_the_step(fashion, optimizer):
    output = train(fashion, "--optimizer", optimizer, "--epochs", 2, "--batch-size", 20).stdout
    assert "400 training and 50 test images" in output
    assert "epoch 2/2: loss" in output
    assert f"optimizer.step ({optimizer}: " in output
    final = re.search(r"test accuracy ([\d.]+) %; ([\d.]+) % of the time", output.splitlines()[-1])
    assert final is not None
    assert 0 < float(final[2]) < 100


def test_train_learns(fashion):
    output = train(fashion, "--epochs", 8, "--batch-size", 10, "--quiet").stdout
    assert float(output.split()[2]) > 50  # of ten classes


def test_quiet_prints_the_result_only(fashion):
    result = train(fashion, "--epochs", 1, "--quiet")
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_seed_and_options_decide_the_result(fashion):
    def losses(*arguments):
        output = train(fashion, "--epochs", 1, "--optimizer", "sgd", *arguments).stdout
        return re.findall(r"loss ([\d.]+)", output)

    base = losses("--seed", 0)
    assert losses("--seed", 0) == base
    changes = (["--seed", 1], ["--lr", 0.1], ["--momentum", 0], ["--weight-decay", 0.5], ["--batch-size", 30])
    for change in changes:
        assert losses(*change) != base, change


def test_seed_is_that_of_weights_and_order(fashion):
    model = seeded(GarmentClassifier, 5)
    optimizer = make_optimizer("torch.sgd", model.parameters())
    (epoch,) = train_loop(model, optimizer, load_fashion_mnist(fashion), epochs=1, batch_size=20, seed=5)
    output = train(fashion, "--epochs", 1, "--optimizer", "torch.sgd", "--batch-size", 20, "--seed", 5).stdout
    assert f"loss {epoch.loss:.4f}, " in output


def test_data_is_found_by_environment(fashion, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_DATA", str(fashion))
    assert "400 training" in run("train", "fashion-mnist", "--epochs", 1, "--no-report").stdout


def test_threads_are_set(fashion):
    for threads in (2, 1):
        train(fashion, "--epochs", 1, "--threads", threads)
        assert torch.get_num_threads() == threads


def test_missing_data_is_one_line_and_exit_1(tmp_path):
    result = train(tmp_path, code=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fusedopt: {tmp_path}/fashion-mnist/train-images-idx3-ubyte.gz: no such file")


def test_corrupt_data_is_one_line_and_exit_1(fashion):
    path = fashion / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3])
    (line,) = train(fashion, code=1).stderr.splitlines()
    assert line.startswith(f"fusedopt: {path}: truncated or corrupt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fashion-mnist", "--optimizer", "lion"], "unknown optimizer 'lion'; choose one of sgd, rmsprop, adagrad,"),
        (["fashion-mnist", "--optimizer", "adam", "--momentum", "0.9"], "adam takes no momentum"),
        (["fashion-mnist", "--lr", "-1"], "Invalid learning rate: -1"),
        (["mnist"], "unknown data set 'mnist'; choose one of fashion-mnist, hands, rps, cifar10"),
        (["hands", "--model", "vgg"], "unknown model 'vgg'; choose one of lenet,"),
        (["hands", "--augment", "flip,shear"], "unknown augmentation 'shear'; choose from pad,"),
        (["hands", "--lr", "fast"], "--lr takes a number, or auto, not 'fast'"),
        (["hands", "--loss", "hinge"], "unknown loss 'hinge'; choose from mae,"),
        (["hands", "--loss", "mse", "--label-smoothing", "0.1"], "--label-smoothing belongs to cross-entropy"),
        (["hands", "--amp", "fp8"], "unknown precision 'fp8'; choose from bf16, fp16"),
        (["hands", "--schedule", "sawtooth"], "unknown schedule 'sawtooth'; choose from exponential-decay,"),
        (["hands", "--accumulate", "0"], "accumulate must be at least 1, not 0"),
        (["hands", "--ema", "1"], "the decay of the average must be between 0 and 1, not 1"),
        (["hands", "--patience", "0"], "patience must be at least 1 epoch, not 0"),
        (["hands", "--device", "tpu"], "'tpu' is not a device; choose from auto, cpu, cuda,"),
        (["hands", "--device", "cuda:99"], "there is no cuda:99: torch sees"),
        (["hands", "--cuda-graph", "--device", "cpu"], "a CUDA graph runs on a GPU, not on cpu"),
        (["hands", "--cuda-graph", "--capture"], "--capture cannot look into a CUDA graph"),
        (["hands", "--cuda-graph", "--optimizer", "torch.sgd"], "torch.sgd cannot be captured in a CUDA graph"),
        (["fashion-mnist", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["fashion-mnist", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_exit_with_2(arguments, message):
    assert message in plain(run("train", *arguments, code=2).stderr)


@pytest.mark.parametrize("model", ["mlp3", "lecture-mlp", "cnn2", "lenet"])
def test_train_takes_models_by_name(fashion, model):
    output = train(fashion, "--model", model, "--epochs", 1, "--batch-size", 20).stdout
    assert re.search(r"(MLP3|LectureMLP|CNN2|LeNet) with [\d,]+ parameters", output)
    assert "epoch 1/1" in output


def test_train_augments(fashion):
    def losses(*arguments):
        return re.findall(r"loss ([\d.]+)", train(fashion, "--epochs", 1, *arguments).stdout)

    plain, augmented = losses(), losses("--augment", "crop,cutmix")
    assert plain != augmented
    assert losses("--augment", "crop,cutmix") == augmented


def test_dropout_repeats_with_the_seed(fashion):
    def losses(seed):
        return re.findall(r"loss ([\d.]+)", train(fashion, "--epochs", 1, "--model", "mlp3", "--seed", seed).stdout)

    torch.rand(3)  # the state of the global generator decides nothing
    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_held_out_images_are_told_from_test_images(fashion):
    lines = train(fashion, "--epochs", 1, "--held-out", 0.1).stdout.splitlines()
    assert lines[0] == "fashion-mnist: 360 training and 40 held-out images"
    assert all("test accuracy" not in line for line in lines)
    assert lines[-1].startswith("held-out accuracy ")


def test_held_out_needs_a_share(fashion):
    output = plain(train(fashion, "--held-out", 1.5, code=2).stderr)
    assert "a share of 1.5 of 400 images leaves none" in output


def outcome(folder):
    """What a run leaves, without the times."""
    run = RunFolder.open(folder)
    timed = ("seconds", "step_seconds", "images_per_second")
    rows = [{name: value for name, value in row.items() if name not in timed} for row in run.rows]
    return rows, run.load_model().state_dict()


def test_a_run_is_left_in_a_folder(fashion):
    options = ("--batch-size", 20, "--schedule", "cosine", "--augment", "flip", "--held-out", 0.1, "--lr", 2e-3)
    output = train(fashion, "--epochs", 2, *options).stdout
    run = RunFolder.open(fashion / "runs" / "fashion-mnist-lenet-1")
    config = run.config
    assert (config.dataset, config.model, config.optimizer) == ("fashion-mnist", "lenet", "adamw")
    assert (config.epochs, config.batch_size, config.seed, config.schedule) == (2, 20, 0, "cosine")
    assert (config.augmentations, config.held_out, config.optimizer_options) == (("flip",), 0.1, {"lr": 2e-3})
    assert config.settings["loss"] == "cross-entropy"
    assert [row["epoch"] for row in run.rows] == [1, 2]
    best = max(row["test_accuracy"] for row in run.rows)
    data = hold_out(load_fashion_mnist(fashion), 0.1)
    assert accuracy(run.load_model(), data.test_images, data.test_labels, run.normalize) == pytest.approx(best)
    assert f"the best, {100 * best:.2f} %" in output
    train(fashion, "--epochs", 1)
    assert (fashion / "runs" / "fashion-mnist-lenet-2" / "log.csv").is_file()


def test_a_run_is_not_overwritten(fashion):
    train(fashion, "--epochs", 1, "--out", "run")
    before = outcome(fashion / "run")
    (line,) = train(fashion, "--epochs", 1, "--seed", 1, "--out", "run", code=1).stderr.splitlines()
    assert line == "fusedopt: run: holds an earlier run; resume it, or name another folder"
    after = outcome(fashion / "run")
    assert before[0] == after[0]
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


EVERYTHING = (
    *("--batch-size", 20, "--model", "cnn2", "--optimizer", "sgd", "--amp", "fp16", "--accumulate", 3, "--ema", 0.9),
    *("--augment", "flip", "--label-smoothing", 0.1, "--max-grad-norm", 1, "--patience", 4, "--lr", "auto"),
)


def test_a_run_resumes_bit_for_bit(fashion):
    train(fashion, *EVERYTHING, "--epochs", 3, "--out", "straight")
    train(fashion, *EVERYTHING, "--epochs", 2, "--out", "resumed")
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
        (["--ema", 0.9], "ema is None there and 0.9 here"),
        (["--lr", 0.1], "lr is None there and 0.1 here"),
        (["--batch-size", 30], "batch_size is 20 there and 30 here"),
        (["--epochs", 3], "epochs is 2 there and 3 here"),
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
    train(fashion, "--epochs", 1, "--lr", "auto", "--out", "auto")
    lr = RunFolder.open(fashion / "auto").config.optimizer_options["lr"]
    assert 0 < lr < 1
    train(fashion, "--epochs", 1, "--lr", lr, "--out", "given")
    auto, given = outcome(fashion / "auto"), outcome(fashion / "given")
    assert auto[0] == given[0]
    torch.testing.assert_close(auto[1], given[1], rtol=0, atol=0)


def test_a_curve_without_an_answer_is_one_line(fashion, monkeypatch):
    monkeypatch.setattr(GarmentClassifier, "forward", lambda self, images: 0 * self.fc3(torch.ones(len(images), 84)))
    (line,) = train(fashion, "--lr", "auto", code=1).stderr.splitlines()
    assert re.match("fusedopt: no learning rate found: .*; or give one by --lr$", line)
    assert not (fashion / "runs").exists()


def test_early_stopping_is_said(fashion):
    output = train(fashion, "--epochs", 9, "--lr", 0, "--patience", 2).stdout
    assert "stopped after epoch 3: none better since epoch 1" in output
    assert "epoch 4" not in output


def test_tensorboard_events_are_in_the_folder(fashion):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(fashion, "--epochs", 2, "--tensorboard", "--out", "run")
    events = accumulator.EventAccumulator(str(fashion / "run")).Reload()
    rows = RunFolder.open(fashion / "run").rows
    for tag, name in {"loss/train": "train_loss", "accuracy/test": "test_accuracy", "lr": "lr"}.items():
        logged = [(event.step, event.value) for event in events.Scalars(tag)]
        assert logged == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows], tag


def test_missing_tensorboard_is_one_line(fashion, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    (line,) = train(fashion, "--tensorboard", code=1).stderr.splitlines()
    assert line == "fusedopt: tensorboard is not installed; pip install 'fusedopt[examples]'"
    assert not (fashion / "runs").exists()


def test_a_report_comes_last(fashion):
    pytest.importorskip("captum")
    pytest.importorskip("torchmetrics")
    options = ("--data-dir", fashion, "--epochs", 1, "--out", "run", "--capture")
    output = run("train", "fashion-mnist", *options).stdout
    assert "report: run/report.html" in output
    assert (fashion / "run" / "report.html").is_file()
    assert len(History.load(fashion / "run" / "history.pt").steps) == 7
    assert (fashion / "run" / "history.png").is_file()


def test_a_missing_extra_costs_the_report_only(fashion, monkeypatch):
    monkeypatch.setitem(sys.modules, "fusedopt.reports", None)
    lines = run("train", "fashion-mnist", "--data-dir", fashion, "--epochs", 1).stdout.splitlines()
    assert lines[-2] == "no report, as fusedopt.reports is not installed; pip install 'fusedopt[examples]'"
    assert lines[-1].startswith("test accuracy")


def test_a_failing_compiler_is_one_line(fashion, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    torch._dynamo.reset()
    (line,) = train(fashion, "--epochs", 1, "--compile", code=1).stderr.splitlines()
    assert line.startswith("fusedopt: torch.compile does not work here (")
    assert "no C++ compiler" in line


def test_deterministic_is_deterministic(fashion):
    try:
        train(fashion, "--epochs", 1, "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
