"""`fusedopt train`, run in this process: its options."""

import os
import re
import sys
from functools import partial
from unittest import mock

import pytest
import torch
import typer
from command_line import plain, run, train

from fusedopt import History, cli
from fusedopt.data import load_fashion_mnist
from fusedopt.models import GarmentClassifier, LeNet
from fusedopt.training import OPTIMIZERS, RunFolder, make_optimizer, seeded
from fusedopt.training import train as train_loop

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "torch.sgd"])
def test_train_reports_accuracy_and_share_of_the_step(fashion, tmp_path, optimizer):
    options = ("--optimizer", optimizer, "--epochs", 2, "--batch-size", 20, "--out", tmp_path / "run")
    output = train(fashion, *options).stdout
    assert "400 training and 50 test images" in output
    assert "epoch 2/2: loss" in output
    assert f"optimizer.step ({optimizer}: " in output
    rows = RunFolder.open(tmp_path / "run").rows
    final = re.search(
        r"test accuracy ([\d.]+) % after the last epoch, ([\d.]+) % the best .*; ([\d.]+) % of the time",
        output.splitlines()[-1],
    )
    accuracies = [100 * row["test_accuracy"] for row in rows]
    share = 100 * sum(row["step_seconds"] for row in rows) / sum(row["seconds"] for row in rows)
    assert final.groups() == (f"{accuracies[-1]:.2f}", f"{max(accuracies):.2f}", f"{share:.1f}")


def test_train_learns(fashion):
    output = train(fashion, "--epochs", 8, "--batch-size", 10, "--quiet").stdout
    assert float(output.split()[2]) > 50  # of ten classes


def test_the_help_names_every_optimizer_and_those_with_momentum():
    options = {p.name: p.help for p in typer.main.get_command(cli.app).commands["train"].params}
    names, _, others = options["optimizer"].partition("; ")
    assert sorted(names.split(", ")) == sorted(OPTIMIZERS)
    assert others == "torch.adamw, ... for PyTorch's."
    for name, entry in OPTIMIZERS.items():
        assert (name in re.split(r"[ ,]+", options["momentum"])) == (entry.momentum is not None)


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
        (["fashion-mnist", "--optimizer", "lions"], "unknown optimizer 'lions'; choose one of sgd, rmsprop, adagrad,"),
        (["fashion-mnist", "--optimizer", "adam", "--momentum", "0.9"], "adam takes no momentum"),
        (["fashion-mnist", "--optimizer", "torch.rprop", "--weight-decay", "0"], "torch.rprop takes no weight decay"),
        (["fashion-mnist", "--lr", "-1"], "Invalid learning rate: -1"),
        (["mnist"], "unknown data set 'mnist'; choose one of fashion-mnist, hands, rps, rps-photos, cifar10"),
        (["hands", "--model", "vgg"], "unknown model 'vgg'; choose one of lenet,"),
        (["hands", "--augment", "flip,shear"], "unknown augmentation 'shear'; choose from pad,"),
        (["hands", "--lr", "fast"], "--lr takes a number, or auto, not 'fast'"),
        (["hands", "--loss", "hinge"], "unknown loss 'hinge'; choose from mae,"),
        (["hands", "--loss", "mse", "--label-smoothing", "0.1"], "--label-smoothing belongs to cross-entropy"),
        (["hands", "--amp", "fp8"], "unknown precision 'fp8'; choose from bf16, fp16"),
        (["hands", "--schedule", "sawtooth"], "unknown schedule 'sawtooth'; choose from exponential-decay,"),
        (["hands", "--accumulate", "0"], "accumulate must be a whole number, at least 1, not 0"),
        (["hands", "--ema", "1"], "the decay of the average must be between 0 and 1, not 1"),
        (["hands", "--patience", "0"], "patience must be a whole number of epochs, at least 1, not 0"),
        (["hands", "--device", "tpu"], "'tpu' is not a device; choose from auto, cpu, cuda,"),
        (["hands", "--device", "cuda:99"], "there is no cuda:99: torch sees"),
        (["hands", "--cuda-graph", "--device", "cpu"], "a CUDA graph runs on a GPU, not on cpu"),
        (["hands", "--cuda-graph", "--capture"], "--capture cannot look into a CUDA graph"),
        (["hands", "--cuda-graph", "--optimizer", "torch.sgd"], "torch.sgd cannot be captured in a CUDA graph"),
        (["fashion-mnist", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["fashion-mnist", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["hands", "--seed", str(2**63)], "Invalid value for '--seed'"),
        (["hands", "--threads", "1025"], "Invalid value for '--threads'"),
        (["hands", "--max-grad-norm", "0"], "--max-grad-norm must be above 0, not 0"),
        (["hands", "--lr", "inf"], "--lr must be a finite number, not inf"),
        (["hands", "--lr", "nan"], "--lr must be a finite number, not nan"),
        (["hands", "--optimizer", "sgd", "--momentum", "nan"], "--momentum must be a finite number, not nan"),
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


@pytest.mark.parametrize(
    ("has", "slow"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),  # has instructions of other names
    ],
)
def test_bf16_without_instructions_is_said_to_be_slow(fashion, tmp_path, monkeypatch, has, slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    options = ("--epochs", 1, "--batch-size", 400, "--model", "mlp3", "--out", tmp_path / "run")
    told = train(fashion, *options, "--amp", "bf16").stderr
    text = "fusedopt: --amp bf16 on a cpu device without instructions for it: slower than without --amp\n"
    assert told == (text if slow else "")


def test_early_stopping_is_said(fashion):
    output = train(fashion, "--epochs", 9, "--lr", 0, "--patience", 2).stdout
    assert "stopped after epoch 3: none better since epoch 1" in output
    assert "epoch 4" not in output
    options = ("--epochs", 9, "--lr", 0, "--patience", 2, "--out", "runs/fashion-mnist-lenet-1", "--resume")
    assert "was stopped by --patience after epoch 3" in train(fashion, *options).stdout


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
        with mock.patch.dict(os.environ):  # which is told what cuBLAS needs
            train(fashion, "--epochs", 1, "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_curve_without_an_answer_is_one_line(fashion, monkeypatch):
    forward = LeNet.forward
    monkeypatch.setattr(LeNet, "forward", lambda self, images: 0 * forward(self, images))
    (line,) = train(fashion, "--lr", "auto", code=1).stderr.splitlines()
    assert re.match(
        "fusedopt: no learning rate found: [^;]*; look at the curve of fusedopt find-lr and give --lr$", line
    )
    assert not (fashion / "runs").exists()
