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


@pytest.mark.usefixtures("one_thread")
def test_draws_the_capture(tmp_path, monkeypatch):
    hands = pictures.make_hands(64, 8)
    monkeypatch.setattr(pictures, "make_hands", lambda: hands)
    pictures.main(["capture", "--out", str(tmp_path)])
    assert (tmp_path / "capture.png").stat().st_size > 20_000


def test_unknown_picture(capsys):
    with pytest.raises(SystemExit):
        pictures.main(["nonsense"])
    assert "no picture 'nonsense'; choose from averages, capture" in capsys.readouterr().err
