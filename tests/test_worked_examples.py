"""The worked examples, on a few drawn images."""

import importlib

import pytest
import torch

from fusedopt.data import ImageData, make_hands
from fusedopt.gradients import History
from fusedopt.training import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


def images(channels, size, classes):
    hands = make_hands(48, 12)
    parts = []
    for pixels in (hands.train_images, hands.test_images):
        resized = torch.nn.functional.interpolate(pixels.float(), (size, size))
        parts.append(resized[:, :channels].byte())
    labels = [torch.arange(len(part)) % classes for part in parts]
    return ImageData("drawn", tuple(f"class {i}" for i in range(classes)), parts[0], labels[0], parts[1], labels[1])


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
        suggested = run.config.optimizer_options["lr"]
        assert f"the finder suggests a learning rate of {suggested:.2g}" in printed
        assert 0 < run.rows[0]["lr"] <= suggested
