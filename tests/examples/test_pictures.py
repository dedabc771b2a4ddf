"""The pictures of the documentation."""

import pytest
import torch
from matplotlib.figure import Figure

import fusedopt
from fusedopt.data import ImageData
from fusedopt.examples import pictures

pytestmark = pytest.mark.one_torch

PNG = b"\x89PNG\r\n\x1a\n"


def test_draws_the_averages(tmp_path):
    pictures.main(["averages", "--out", str(tmp_path / "new")])
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "averages.png"
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 20_000  # an empty canvas of this size is smaller


def test_draws_the_forms_of_momentum(tmp_path):
    pictures.main(["momentum", "--out", str(tmp_path)])
    assert (tmp_path / "momentum.png").stat().st_size > 20_000


def test_the_forms_of_momentum_differ_where_the_rate_changes():
    torch_form, classic = (pictures._step_lengths(form, [1.0, 1.0, 0.5]) for form in ("torch", "classic"))
    assert torch_form == pytest.approx([1, 1.9, 0.5 * 2.71])
    assert classic == pytest.approx([1, 1.9, 0.9 * 1.9 + 0.5])


@pytest.mark.usefixtures("one_thread")
def test_draws_the_capture(tmp_path, monkeypatch):
    hands = pictures.make_hands(64, 8)
    monkeypatch.setattr(pictures, "make_hands", lambda: hands)
    pictures.main(["capture", "--out", str(tmp_path)])
    assert (tmp_path / "capture.png").stat().st_size > 20_000


@pytest.mark.usefixtures("one_thread")
def test_draws_swats_and_says_what_was_measured(tmp_path, monkeypatch, capsys):
    labels = torch.arange(40) % 10
    images = (25 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    data = ImageData("fashion-mnist", tuple("0123456789"), images, labels, images[:20], labels[:20])
    style = {"color": "black"}
    runs = {"plain": ("sgd", {}, style), **{f"eps={e}": ("swats", {"eps": e}, style) for e in (1e-9, 100.0)}}
    monkeypatch.setattr(pictures, "load_fashion_mnist", lambda: data)
    monkeypatch.setattr(pictures, "SWATS_RUNS", runs)
    monkeypatch.setattr(pictures, "SWATS_BATCH", 10)
    pictures.main(["swats", "--out", str(tmp_path)])
    assert (tmp_path / "swats.png").stat().st_size > 20_000
    plain, never, second = capsys.readouterr().out.splitlines()
    assert plain.startswith("plain; test accuracy ")
    assert never.startswith("eps=1e-09: never switches; test accuracy ")
    assert second.startswith("eps=100.0: step 2, Λ = ")


@pytest.mark.usefixtures("one_thread")
def test_projections_are_read_back_from_their_average():
    p = torch.zeros(1, dtype=torch.float64)
    optimizer = fusedopt.SWATS([p], lr=0.5, betas=(0.0, 0.75), eps=1e-9)
    switches = []
    optimizer.register_step_post_hook(pictures._keep_switch(switches))
    expected, square = [], 0.0
    for count, grad in enumerate((2.0, -1.0, 4.0), 1):
        p.grad = torch.full_like(p, grad)
        optimizer.step()
        square = 0.75 * square + 0.25 * grad**2
        step = 0.5 * (1 - 0.75**count) ** 0.5 * abs(grad) / (square**0.5 + 1e-9)
        expected.append(step / abs(grad))
    axes = Figure().subplots()
    pictures._draw_projections(axes, switches, beta=0.75)
    assert axes.lines[0].get_ydata().tolist() == pytest.approx(expected)


def test_unknown_picture(capsys):
    with pytest.raises(SystemExit):
        pictures.main(["nonsense"])
    assert "no picture 'nonsense'; choose from averages, capture, momentum, swats" in capsys.readouterr().err
