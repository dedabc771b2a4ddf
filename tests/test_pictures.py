"""The pictures of the documentation."""

import pytest

from fusedopt.examples import pictures

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


def test_unknown_picture(capsys):
    with pytest.raises(SystemExit):
        pictures.main(["nonsense"])
    assert "no picture 'nonsense'; choose from averages, capture, momentum" in capsys.readouterr().err
