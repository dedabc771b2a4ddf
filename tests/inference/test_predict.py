"""Image files of all kinds, as `fusedopt predict` reads and classifies them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_images import bomb, saved
from run_folders import config_of, hide, make_run, network, run_command, small_hands

from fusedopt.data import DataError
from fusedopt.inference import classify, read_image
from fusedopt.training import RunFolder

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    return small_hands(6)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    return make_run(tmp_path_factory.mktemp("finished") / "run", data)


@pytest.fixture
def hands(tmp_path, data):
    """The test images as files."""
    paths = []
    for number, image in enumerate(data.test_images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


def test_predictions_are_the_networks(run, data, hands):
    with torch.no_grad():
        probabilities = run.load_model()(run.normalize(data.test_images)).softmax(dim=1)
    for (path, found), expected_path, row in zip(classify(run, hands), hands, probabilities, strict=True):
        assert path == expected_path
        assert [p.probability for p in found] == pytest.approx(row.sort(descending=True).values.tolist(), rel=1e-4)
        by_name = dict(zip(data.classes, row.tolist(), strict=True))
        assert {p.name: p.probability for p in found} == pytest.approx(by_name, rel=1e-4)


def test_images_of_the_right_size_stay_as_they_are(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    assert torch.equal(read_image(saved(tmp_path, array), 3, 60), torch.from_numpy(array).permute(2, 0, 1))


def test_wide_images_are_squeezed(tmp_path):
    image = read_image(saved(tmp_path, np.zeros((10, 90, 3), dtype=np.uint8)), 3, 28)
    assert image.shape == (3, 28, 28)
    assert image.dtype == torch.uint8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_are_white(mode, channels, tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, 3] = 255  # black above, nothing below
    image, options = Image.fromarray(pixels), {}
    if mode == "P":
        image, options = Image.frombytes("P", (4, 4), bytes(8 * [0] + 8 * [1])), {"transparency": 1}
        image.putpalette([0, 0, 0, 90, 90, 90])
    image.convert(mode).save(tmp_path / "image.png", **options)
    read = read_image(tmp_path / "image.png", channels, 4)
    assert read.shape == (channels, 4, 4)
    assert (read[:, :2] == 0).all()
    assert (read[:, 2:] == 255).all()


def test_half_transparent_pixels_are_between(tmp_path):
    path = saved(tmp_path, np.full((2, 2, 4), (0, 0, 0, 128), dtype=np.uint8))
    assert (read_image(path, 3, 2) - 127).abs().max() <= 1


def test_colours_become_grey(tmp_path):
    path = saved(tmp_path, np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8))
    assert read_image(path, 1, 2).tolist() == [[[76, 76], [76, 76]]]  # ITU-R 601


def test_grey_becomes_three_channels(tmp_path):
    assert read_image(saved(tmp_path, np.full((2, 2), 9, dtype=np.uint8)), 3, 2).unique().tolist() == [9]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    path = saved(tmp_path, np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16))
    assert read_image(path, 1, 2).tolist() == [[[0, 100], [200, 255]]]
    assert read_image(path, 3, 2)[2].tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_thirty_two_bits_are_refused_as_their_range_is_unknown(tmp_path, dtype):
    path = saved(tmp_path, np.full((2, 2), 255, dtype=dtype), name="image.tiff")
    with pytest.raises(DataError, match=r"image.tiff: cannot be read .*32 bits per channel, of unknown range"):
        read_image(path, 1, 2)


def test_large_photographs_are_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)  # warns above it, refuses above twice as many
    assert read_image(saved(tmp_path, np.full((2, 2), 9, dtype=np.uint8)), 1, 2).unique().tolist() == [9]


def test_photographs_are_turned_upright(tmp_path):
    array = np.zeros((4, 4, 3), dtype=np.uint8)
    array[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    read = read_image(saved(tmp_path, array, exif=exif), 3, 4)
    assert (read[0, :, 2:] == 255).all()
    assert (read[0, :, :2] == 0).all()


def test_other_kinds_of_files(tmp_path):
    array = np.full((5, 5, 3), 200, dtype=np.uint8)
    for name, mode in (("a.jpg", "CMYK"), ("a.bmp", "1"), ("a.gif", None), ("a.webp", None)):
        assert read_image(saved(tmp_path, array, mode, name), 3, 3).shape == (3, 3, 3)


def broken(tmp_path, hands):
    good = hands[0].read_bytes()
    contents = {
        "empty": b"",
        "text": b"hello",
        "torn": good[:200],
        "bomb": bomb(),
        "flipped": good[:60] + b"x" + good[61:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / "missing", tmp_path, *(tmp_path / name for name in contents)]


def test_broken_files_are_one_line_each(tmp_path, hands):
    for path in broken(tmp_path, hands):
        with pytest.raises(DataError) as caught:
            read_image(path, 3, 28)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert message.endswith("; name an image file")
        assert "\n" not in message
        assert message.count(str(path)) == 1


def test_command_prints_classes_and_goes_on_after_errors(run, tmp_path, hands):
    bad = broken(tmp_path, hands)
    result = run_command("predict", run.folder, hands[0], *bad, hands[1], code=1)
    (_, first), (_, second) = classify(run, hands[:2])
    expected = [
        f"{path}: {', '.join(f'{p.name} {100 * p.probability:.1f} %' for p in found)}"
        for path, found in ((hands[0], first), (hands[1], second))
    ]
    assert result.stdout.splitlines() == expected
    assert expected[0].count("%") == 3
    lines = result.stderr.splitlines()
    assert len(lines) == len(bad)
    assert all(line.startswith(f"fusedopt: {path}: ") for line, path in zip(lines, bad, strict=True))
    assert run_command("predict", run.folder, *hands).stderr == ""


def test_command_prints_json(run, tmp_path, hands):
    result = run_command("predict", run.folder, hands[0], tmp_path / "no", "--json", "--top", 2, code=1)
    first, second = json.loads(result.stdout)
    (_, found) = next(classify(run, hands))
    assert first["file"] == str(hands[0])
    assert first["predictions"] == [{"class": p.name, "probability": p.probability} for p in found[:2]]
    assert second == {"file": str(tmp_path / "no"), "error": result.stderr.strip().removeprefix("fusedopt: ")}


def test_grey_networks_read_grey_images(tmp_path, data, hands):
    grey = data.__class__(
        **{**vars(data), "train_images": data.train_images[:, :1], "test_images": data.test_images[:, :1]}
    )
    run = RunFolder.create(tmp_path / "run", config_of(grey))
    run.save_model(network(run.config))
    assert run_command("predict", run.folder, hands[0]).stdout.count("%") == 3


def test_what_is_missing_is_named(run, tmp_path, hands, monkeypatch):
    assert "holds no run" in run_command("predict", tmp_path, hands[0], code=1).stderr
    hide("PIL", monkeypatch)
    (line,) = run_command("predict", run.folder, hands[0], code=1).stderr.splitlines()
    assert line == "fusedopt: PIL is not installed; pip install 'fusedopt[examples]'"
