"""Image files as a data set's folders and archives are read, and as `fusedopt predict` reads them: in one way."""

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from made_images import bomb, saved
from run_folders import make_run, run_command, small_hands

from fusedopt.data import DataError, ImageFiles, read_image, rps
from fusedopt.inference import classify

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]
CLEAR = np.array([[[0, 0, 0, 0], [0, 0, 0, 255]], [[90, 90, 90, 0], [9, 9, 9, 255]]], np.uint8)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    return exif


KINDS = {
    "16 bits": (np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16), {}, [[0, 100], [200, 255]]),
    "16 bits, a transparent value": (
        np.array([[0, 257 * 100], [257 * 200, 0]], np.uint16),
        {"transparency": 0},
        [[255, 100], [200, 255]],
    ),
    "rotated": (np.array([[10, 20], [30, 40]], np.uint8), {"exif": rotated}, [[30, 10], [40, 20]]),
    "transparent": (CLEAR, {}, [[255, 0], [255, 9]]),
    "a transparent value": (np.array([[7, 8], [9, 7]], np.uint8), {"transparency": 7}, [[255, 8], [9, 255]]),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    array, options, expected = KINDS[request.param]
    options = {name: value() if callable(value) else value for name, value in options.items()}
    (tmp_path / "train" / "rock").mkdir(parents=True)
    path = saved(tmp_path / "train" / "rock", array, **options)
    return path, torch.tensor(expected, dtype=torch.uint8).expand(3, 2, 2)


def test_what_is_learned_is_what_predict_sees(kind, tmp_path, monkeypatch):
    path, expected = kind
    assert torch.equal(read_image(path, 3, 2), expected)
    ((image, label),) = ImageFiles(tmp_path / "train", ["rock"], 2)
    assert torch.equal(image, expected)
    assert label == 0
    monkeypatch.setattr(rps, "CLASSES", ("rock",))
    with zipfile.ZipFile(tmp_path / "rps.zip", "w") as archive:
        archive.write(path, "rps/rock/image.png")
    images, _ = rps._load_archive(tmp_path / "rps.zip", 2)
    assert torch.equal(images[0], expected)


def test_what_is_no_image_of_the_class_is_left_out(tmp_path, monkeypatch):
    rock = tmp_path / "rock"
    (rock / "folder.png").mkdir(parents=True)
    (rock / ".hidden").mkdir()
    path = saved(rock, CLEAR, name="a.PNG")
    for name in ("._a.png", ".a.png", ".hidden/a.png", "a.txt", "Thumbs.db"):
        (rock / name).write_bytes(b"\0\5\x16\7 of macOS")
    assert ImageFiles(str(tmp_path), ["rock"], 2).files == [(path, 0)]

    monkeypatch.setattr(rps, "CLASSES", ("rock",))
    with zipfile.ZipFile(tmp_path / "rps.zip", "w") as archive:
        for name in ("rps/rock/a.png", "rps/rock/._a.png", "__MACOSX/rps/rock/._a.png", "a.png", "rps/rock/b.png/"):
            archive.writestr(name, path.read_bytes() if name == "rps/rock/a.png" else b"")
    images, labels = rps._load_archive(tmp_path / "rps.zip", 2)
    assert images.shape == (1, 3, 2, 2)
    assert labels.tolist() == [0]

    path.unlink()
    with pytest.raises(DataError, match=r"rock: holds no \.png, \.jpg, \.jpeg files"):
        ImageFiles(tmp_path, ["rock"], 2)


def in_time(read):
    """Runs in a thread, which is left behind where it waits for ever."""
    done = Future()

    def work():
        try:
            done.set_result(read())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done.result(60)


@pytest.mark.parametrize("how", ["bomb", "dangling", "pipe"])
def test_what_only_looks_like_an_image_is_named(tmp_path, how):
    (tmp_path / "rock").mkdir()
    path = tmp_path / "rock" / "a.png"
    if how == "bomb":
        path.write_bytes(bomb())
    elif how == "dangling":
        path.symlink_to(tmp_path / "nothing")
    else:
        os.mkfifo(path)
    reasons = {"bomb": "decompression bomb", "dangling": "No such file", "pipe": "not an image that Pillow can read"}
    with pytest.raises(DataError, match=rf"rock/a\.png: .*{reasons[how]}.*; fetch it again"):
        in_time(ImageFiles(tmp_path, ["rock"], 2).load)


def test_a_pipe_is_read_and_one_without_a_writer_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: not an image that Pillow can read; name an image file"):
        in_time(lambda: read_image(tmp_path / "pipe", 3, 2))
    content = saved(tmp_path, CLEAR).read_bytes()
    end, start = os.pipe()  # as a shell's <(...)
    writer = threading.Timer(0.3, lambda: (os.write(start, content), os.close(start)))
    writer.start()
    assert torch.equal(in_time(lambda: read_image(f"/dev/fd/{end}", 3, 2)), read_image(tmp_path / "image.png", 3, 2))
    writer.join()
    os.close(end)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full"])
def test_devices_are_refused(device):
    with pytest.raises(DataError, match=f"{device}: cannot be read .it is a device.; name an image file"):
        read_image(device, 3, 2)


def test_damaged_exif_data_are_passed_over_in_silence(tmp_path, recwarn):
    path = saved(tmp_path, np.full((4, 2), 9, np.uint8), name="a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert read_image(path, 1, 4).unique().tolist() == [9]
    assert not recwarn.list


def test_other_channels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"image\.png: images are read with 1 or 3 channels, not with 2"):
        read_image(saved(tmp_path, CLEAR), 2, 2)
    with pytest.raises(DataError, match="bytes: not an image"):
        read_image(io.BytesIO(b"no"), 3, 2, name="bytes")


def test_names_that_are_no_text(tmp_path):
    data = small_hands(6)
    run = make_run(tmp_path / "run", data, epochs=1)
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Image.fromarray(data.test_images[0].permute(1, 2, 0).numpy()).save(path)
    missing = f"{path}.no"

    ((same, found),) = classify(run, [path])
    assert same == path
    first, second = json.loads(run_command("predict", run.folder, path, missing, "--json", code=1).stdout)
    assert first["file"] == path
    assert first["predictions"][0]["class"] == found[0].name
    assert second["file"] == missing

    command = [sys.executable, "-m", "fusedopt", "predict", run.folder, path, missing]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(os.fsencode(path) + b": ")
    assert done.stderr.count(b"\n") == 1
    assert b"\\udcff.png.no: cannot be read (No such file" in done.stderr
