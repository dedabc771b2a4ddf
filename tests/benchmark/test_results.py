"""What a comparison prints, draws and writes."""

import json

import pytest
from comparisons import comparison

from fusedopt.benchmark.words import duration, factor, size


def test_the_table():
    lines = str(comparison()).splitlines()
    assert lines[:2] == [
        "a net: 1,234 parameters in 2 tensors, float32",
        "a CPU; a copy of large buffers moves 10.0 GB/s",
    ]
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "AdamW\nfusedopt 2 ms 1 ms .. 4 ms 50% 2.4 MB 2.00x as fast (2.00 .. 2.00)" in text
    assert "PyTorch fused 4 ms 2 ms .. 8 ms 50% 2.4 MB the fastest" in text
    assert "LAMB\nfusedopt 20 µs 10 µs .. 40 µs 50% 2.4 MB\n" in text
    assert (
        "training, batches of 8 median of it the step\nAdamW\nfusedopt 1 s 4 ms, 0.4%\nPyTorch fused 1.25 s 8 ms"
        in text
    )
    assert "fusedopt's saves 4 ms of a training step of 1.25 s: 0.3%" in text
    assert "PyTorch has no LAMB: in its place" in text
    assert "Left out: apex: no" in text
    assert "busy" not in text
    assert "launches" not in text
    assert "A step is a part of a training iteration" not in text
    assert "A step is a part of a training iteration" in str(comparison(batch=None))


def test_a_busy_machine_is_named_beside_its_numbers():
    text = str(comparison(busy={"AdamW": 1.25}))
    assert text.count("AdamW  (other processes kept 1.2 cores busy: not to be quoted)") == 2
    assert "\nLAMB\n" in text
    assert "WARNING: this machine was busy" in text


def test_json_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    both = comparison(busy={"AdamW": 1.0})
    assert json.loads(json.dumps(both.as_dict()))["rows"][0]["training"]["share"] == 0.004
    figure = both.plot(tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "AdamW (busy machine)",
        "training, batches of 8",
        "LAMB",
        "training, batches of 8",
    ]
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == ["fusedopt  1 s, step 0.4%", "PyTorch fused  1.25 s, step 0.6%"]
    alone = comparison(batch=None).plot(tmp_path / "alone.png")
    assert [axes.get_title(loc="left") for axes in alone.axes] == ["AdamW: 2.0x", "LAMB"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5e-6, "1.5 µs"),
        (0.99e-3, "990 µs"),
        (1e-3, "1 ms"),
        (0.1234, "123 ms"),
        (0.9999, "1000 ms"),
        (12.34, "12.3 s"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sizes():
    assert [size(count) for count in (0, 12, 1_234_567, 2_000_000_000)] == ["none", "0.012 kB", "1.23 MB", "2 GB"]


def test_ratios_have_three_digits():
    assert [factor(ratio) for ratio in (0.00123, 0.987, 3.14159, 31.4159, 314.159)] == [
        "0.0012",
        "0.99",
        "3.14",
        "31.4",
        "314",
    ]
