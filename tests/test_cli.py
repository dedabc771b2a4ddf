"""The command line, run in this process."""

import gzip
import hashlib
import re
import runpy
import struct
import sys

import pytest
import torch
from typer.testing import CliRunner

import fusedopt
from fusedopt import cli
from fusedopt.data import load_fashion_mnist, make_hands
from fusedopt.data.fashion_mnist import MD5_SUMS
from fusedopt.examples.demo import run_demo
from fusedopt.examples.step_times import OURS, format_table, speedup
from fusedopt.examples.tasks import TASKS, Task
from fusedopt.models import GarmentClassifier, HandClassifier
from fusedopt.training import make_optimizer, seeded
from fusedopt.training import train as train_loop
from fusedopt.training.timing import Timing


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing by more threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder with a small Fashion-MNIST, easy to learn: the brightness tells the class."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for split, count in (("train", 400), ("t10k", 50)):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        images = (labels * 25)[:, None, None].expand(-1, 28, 28).contiguous()
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
            content = gzip.compress(head + values.numpy().tobytes())
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(content)
            monkeypatch.setitem(MD5_SUMS, f"{split}-{kind}-ubyte.gz", hashlib.md5(content).hexdigest())
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def train(fashion, *arguments, code=0):
    return run("train", "fashion-mnist", "--data-dir", fashion, *arguments, code=code)


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
    assert "400 training" in run("train", "fashion-mnist", "--epochs", 1).stdout


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


def plain(text):
    """Undoes the box, the colours and the line breaks of a usage error."""
    return " ".join(re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fashion-mnist", "--optimizer", "lion"], "unknown optimizer 'lion'; choose one of sgd, rmsprop, adagrad,"),
        (["fashion-mnist", "--optimizer", "adam", "--momentum", "0.9"], "adam takes no momentum"),
        (["fashion-mnist", "--lr", "-1"], "Invalid learning rate: -1"),
        (["mnist"], "unknown data set 'mnist'; choose one of fashion-mnist, hands, rps, cifar10"),
        (["hands", "--model", "vgg"], "unknown model 'vgg'; choose one of lenet,"),
        (["hands", "--augment", "flip,shear"], "unknown augmentation 'shear'; choose from pad,"),
        (["fashion-mnist", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["fashion-mnist", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_exit_with_2(arguments, message):
    assert message in plain(run("train", *arguments, code=2).stderr)


def test_info_prints_what_the_library_says():
    lines = run("info").stdout.splitlines()
    assert lines == [f"{key}: {value}" for key, value in fusedopt.info().items()]


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("tqdm", ["train", "hands"]),
        ("matplotlib", ["demo"]),
        ("matplotlib", ["plot-schedule", "cosine"]),
        ("matplotlib", ["show-augmentations", "hands"]),
    ],
)
def test_missing_extra_is_named(monkeypatch, module, command):
    for name in [n for n in sys.modules if n.startswith(("fusedopt.examples.", f"{module}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hide(module), *sys.meta_path])
    monkeypatch.delitem(sys.modules, module, raising=False)
    (line,) = run(*command, code=1).stderr.splitlines()
    assert line == f"fusedopt: {module} is not installed; pip install 'fusedopt[examples]'"


class Hide:
    """Pretends that a module is not installed."""

    def __init__(self, module):
        self.module = module

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_missing_typer_is_named(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [Hide("typer"), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "typer")
    with pytest.raises(SystemExit, match=r"typer is not installed; pip install 'fusedopt\[examples\]'"):
        runpy.run_path(cli.__file__)


def test_unwritable_folder_of_the_demo_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (line,) = run("demo", "--out", tmp_path / "file", code=1).stderr.splitlines()
    assert line.startswith("fusedopt: the pictures cannot be written")
    assert "--out" in line


def test_demo_prints_the_table_and_draws_two_pictures(tmp_path):
    lines = []
    pictures = run_demo(tmp_path / "out", epochs=1, data=make_hands(90, 30), rounds=3, say=lines.append)
    assert pictures == (tmp_path / "out" / "training.png", tmp_path / "out" / "step_times.png")
    for picture in pictures:
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">2I", content[16:24])
        assert width > 900
        assert height > 500
        assert len(content) > 20_000  # an empty canvas of this size is smaller
    output = "\n".join(lines)
    assert f"PyTorch {torch.__version__}" in output
    for name in ("AdamW", "SGD (Nesterov)", "RMSprop", "LAMB"):
        assert re.search(rf"^{re.escape(name)} +[\d.]+ ", output, re.MULTILINE)


def test_table_compares_with_the_fastest_native():
    def timing(median):
        return Timing(median, (median, median))

    row = {OURS: timing(10.0), "for-loop": timing(80.0), "foreach": timing(50.0), "fused": timing(25.0)}
    assert speedup(row) == 2.5
    assert speedup({OURS: timing(10.0)}) is None
    _, adamw, lamb = format_table({"adamw": row, "lamb": {OURS: timing(12.0)}}).splitlines()
    assert adamw.split() == ["AdamW", "10.0", "80.0", "50.0", "25.0", "2.50x"]
    assert lamb.split()[:6] == ["LAMB", "12.0", "-", "-", "-", "-"]


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


@pytest.fixture
def few_hands(monkeypatch):
    data = make_hands(30, 3)
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, HandClassifier))


@pytest.mark.usefixtures("few_hands")
def test_show_augmentations_draws_a_contact_sheet(fashion, tmp_path):
    sheets = {}
    for name, arguments in {
        "all": ["hands"],
        "one": ["hands", "mosaic"],
        "other": ["hands", "mosaic", "--seed", 1],
        "gray": ["fashion-mnist", "flip", "--data-dir", fashion],
    }.items():
        path = tmp_path / f"{name}.png"
        assert str(path) in run("show-augmentations", *arguments, "--out", path).stdout
        sheets[name] = path.read_bytes()
        assert sheets[name].startswith(b"\x89PNG")
    heights = {name: struct.unpack(">2I", content[16:24])[1] for name, content in sheets.items()}
    assert heights["all"] == pytest.approx(7.5 * heights["one"], abs=9)  # 15 rows, with the originals; 2 rows
    assert len({*sheets.values()}) == 4


@pytest.mark.usefixtures("few_hands")
def test_show_augmentations_names_what_is_wrong(tmp_path):
    message = plain(run("show-augmentations", "hands", "shear", code=2).stderr)
    assert "unknown augmentation 'shear'; choose from pad," in message
    assert "unknown data set 'mnist'" in plain(run("show-augmentations", "mnist", code=2).stderr)
    (line,) = run("show-augmentations", "hands", "flip", "--out", tmp_path / "no" / "x.png", code=1).stderr.splitlines()
    assert line.startswith(f"fusedopt: {tmp_path}/no/x.png cannot be written")
    result = run("show-augmentations", "rps", "--data-dir", tmp_path, code=1)
    assert result.stderr.startswith(f"fusedopt: {tmp_path}/rps/rps.zip: no such file")


def test_train_resumes_from_its_checkpoints(fashion, tmp_path):
    folder = tmp_path / "run"
    options = ("--batch-size", 20, "--checkpoint-dir", folder)
    straight = train(fashion, "--batch-size", 20, "--epochs", 3).stdout.splitlines()
    train(fashion, *options, "--epochs", 1)
    resumed = train(fashion, *options, "--epochs", 3, "--resume").stdout.splitlines()
    epochs = [[line.rpartition(",")[0] for line in lines if line.startswith("epoch")] for lines in (straight, resumed)]
    assert len(epochs[0]) == 3
    assert epochs[1] == epochs[0][1:]
    assert "holds all of the 3 epochs" in train(fashion, *options, "--epochs", 3, "--resume").stdout
    result = train(fashion, *options, code=1)
    assert result.stderr.count("\n") == 1
    assert "holds checkpoints of an earlier run; resume it, or name another folder" in result.stderr
    assert "--resume needs --checkpoint-dir" in train(fashion, "--resume", code=2).stderr
