"""The worked examples, on a few drawn images."""

import importlib
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from fusedopt.data import ImageData, make_hands
from fusedopt.examples import lecture_mlp
from fusedopt.gradients import History
from fusedopt.training import RunFolder, seeded

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


def images(channels, size, classes):
    hands = make_hands(48, 12)
    parts = []
    for pixels in (hands.train_images, hands.test_images):
        resized = torch.nn.functional.interpolate(pixels.float(), (size, size))
        parts.append(resized[:, :channels].byte())
    labels = [torch.arange(len(part)) % classes for part in parts]
    return ImageData("drawn", tuple(f"class {i}" for i in range(classes)), parts[0], labels[0], parts[1], labels[1])


def train_in_bf16(train):
    """Checks what the CIFAR-10 example trains with."""

    def spy(model, *arguments, settings, **options):
        assert (settings.amp, settings.channels_last, settings.schedule) == ("bf16", True, "one-cycle")
        return train(model, *arguments, settings=settings, **options)

    return spy


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"), [("fashion_mnist", 1, 28, 10), ("rps", 3, 28, 3), ("cifar10", 3, 32, 10)]
)
def test_example_trains_and_reports(name, channels, size, classes, tmp_path, monkeypatch, capsys):
    pytest.importorskip("captum")
    pytest.importorskip("torchmetrics")
    example = importlib.import_module(f"fusedopt.examples.{name}")
    data = images(channels, size, classes)
    monkeypatch.setattr(example, f"load_{name}", lambda *_, **__: data)
    if name == "cifar10":
        monkeypatch.setattr(example, "WIDTH", 4)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
        monkeypatch.setattr(example, "train", train_in_bf16(example.train))
    example.main(["--epochs", "4", "--threads", "1", "--seed", "3", "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "top accuracy" in printed
    assert (tmp_path / "run" / "report.html").is_file()
    run = RunFolder.open(tmp_path / "run")
    assert len(run.rows) == run.config.epochs == 4
    assert run.config.seed == 3
    accuracy = (run.load_model()(run.normalize(data.test_images)).argmax(1) == data.test_labels).float().mean()
    assert accuracy.item() == pytest.approx(max(row["test_accuracy"] for row in run.rows))
    if name == "rps":
        history = History.load(tmp_path / "run" / "history.pt")
        assert history.steps == [0, 10]
        assert list(history.gradients) == ["conv1.weight", "conv1.bias"]
    if name == "cifar10":
        assert (run.config.amp, run.config.settings) == ("bf16", {"channels_last": True})
        suggested = run.config.optimizer_options["lr"]
        assert f"the finder suggests a learning rate of {suggested:.2g}" in printed
        assert 0 < run.rows[0]["lr"] <= suggested


def test_lecture_sweep_trains_every_variant(monkeypatch, capsys):
    data, seen = images(1, 28, 10), []

    def spy(model, optimizer, data, **options):
        seen.append((model, optimizer.param_groups[0]["lr"], len(data.train_labels)))
        assert options["settings"].schedule == "cosine"
        return original(model, optimizer, data, **options)

    original = lecture_mlp.train
    monkeypatch.setattr(lecture_mlp, "train", spy)
    monkeypatch.setattr(lecture_mlp, "HELD_OUT", 0.25)  # of these few
    monkeypatch.setattr(lecture_mlp, "load_fashion_mnist", lambda *_, **__: data)
    short = {name: replace(variant, epochs=2) for name, variant in lecture_mlp.VARIANTS.items()}
    monkeypatch.setattr(lecture_mlp, "VARIANTS", short)
    lecture_mlp.main(["--seeds", "2"])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 10
    assert all(re.search(r" 2 +\d\d\.\d\d % +\d+\.\d\d % \(\d+\.\d\d to \d+\.\d\d %\)$", row) for row in rows)
    assert {count for _, _, count in seen} == {48 - 10}  # one of each class
    assert [lr for _, lr, _ in seen[::2]] == [0.01, 0.01, *[0.1] * 8]
    first = [next(p for p in seeded(variant.model, 0).parameters()) for variant in lecture_mlp.VARIANTS.values()]
    assert first[0].std().item() == pytest.approx(1, abs=0.05)
    assert first[1].min() >= 0
    assert first[1].mean().item() == pytest.approx(0.5, abs=0.02)
    assert first[4].std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.05)
    assert [len(p) for p in first] == [75] * 9 + [1000]
    dropping = seen[16][0]
    assert [layer.p for layer in dropping.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.3, 0.2]
    torch.manual_seed(12345)
    lecture_mlp.run(list(lecture_mlp.VARIANTS.values())[8], data, 0)
    assert all(map(torch.equal, dropping.parameters(), seen[-1][0].parameters()))
