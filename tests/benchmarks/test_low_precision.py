"""`benchmarks/low_precision.py` trains in the formats that it names, from one start, and keeps what it measured."""

import json
import math
from dataclasses import replace

import low_precision as benchmark
import low_precision_training as training
import pytest
import torch
from low_precision_report import Cell, differences, markdown, plot
from low_precision_training import CONTEXT, FORMATS, SUBJECTS, CharacterModel, Run, Text, train

from fusedopt.data import make_hands
from fusedopt.tasks import Task

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]

RUN = Run("lenet", "adamw", "float32", 0, steps=10, lr=0.1, score=0.8, bytes_per_parameter=12.0, seconds=1.0)


def several(scores, **changes):
    return [replace(RUN, seed=seed, score=score, **changes) for seed, score in enumerate(scores)]


# Trainings


def test_bytes_are_those_of_the_formats():
    sizes = {name: train("transformer", "adamw", name, 0, 1).bytes_per_parameter for name in FORMATS}
    model = training.data_of("transformer").network()
    elements = [p.numel() for p in model.parameters()]
    coded = sum(2 * (n + 4 * math.ceil(n / 256)) if n >= 4096 else 8 * n for n in elements)  # two states
    eight = coded / sum(elements)
    assert eight < 2.2
    expected = {"float32": 12, "bfloat16": 6, "masters": 12, "stochastic": 6}
    expected |= {"8bit": 4 + eight, "8bit-stochastic": 4 + eight, "masters-8bit": 4 + eight}
    # And the counts of steps, of four bytes for each tensor, with those that rounding needs.
    assert sizes == pytest.approx(expected, abs=8 * len(elements) / sum(elements))


def test_formats_see_the_same_batches_and_seeds_other_ones(monkeypatch):
    seen = []
    loss_of = training.loss_of
    monkeypatch.setattr(training, "loss_of", lambda scores, targets: seen.append(targets) or loss_of(scores, targets))
    monkeypatch.setattr(Text, "score", lambda *_: 0.0)
    for name, seed in [("float32", 0), ("masters-8bit", 0), ("float32", 1)]:
        train("transformer", "sgd", name, seed, 2)
    first, same, other = seen[:2], seen[2:4], seen[4:]
    assert all(map(torch.equal, first, same))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(*first)


def test_formats_begin_with_the_same_weights_and_seeds_with_other_ones():
    start = train("transformer", "sgd", "float32", 0, 1, lr=1e-12).score
    assert train("transformer", "sgd", "8bit", 0, 1, lr=1e-12).score == start
    assert train("transformer", "sgd", "stochastic", 0, 1, lr=1e-12).score == pytest.approx(start, rel=1e-3)
    assert train("transformer", "sgd", "float32", 1, 1, lr=1e-12).score != pytest.approx(start, rel=1e-3)


def test_results_follow_from_the_seed_and_the_format():
    first, second = ({name: train("transformer", "adamw", name, 0, 3).score for name in FORMATS} for _ in range(2))
    assert first == second
    assert len(set(first.values())) == len(FORMATS)


@pytest.fixture
def hands(monkeypatch):
    """Drawn hands in the place of the photographed ones."""
    monkeypatch.setitem(training.TASKS, "rps", Task(lambda folder, notify: make_hands(300, 60), "cnn2"))
    training.data_of.cache_clear()
    yield
    training.data_of.cache_clear()


@pytest.mark.parametrize("name", FORMATS)
def test_images_are_learned_in_each_format(name, hands):
    assert train("cnn2", "lamb", name, 0, 50, lr=0.03).score > 0.5  # of three hands


def test_dropout_follows_from_the_seed(hands, monkeypatch):
    seen = []
    loss_of = training.loss_of
    monkeypatch.setattr(training, "loss_of", lambda scores, targets: seen.append(scores) or loss_of(scores, targets))
    for _ in range(2):
        train("cnn2", "sgd", "float32", 0, 1)
    assert torch.equal(*seen)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_no_character_is_predicted_from_later_ones(mode):
    model = getattr(CharacterModel(9), mode)()
    characters = torch.randint(9, (2, CONTEXT))
    changed = characters.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 9
    with torch.no_grad():
        before, after = model(characters), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.isclose(before[:, 10:], after[:, 10:]).all(-1).any()


def test_loss_of_a_model_that_knows_nothing_is_the_logarithm_of_the_alphabet():
    data = Text()
    model = data.network()
    torch.nn.init.zeros_(model.scores.weight)
    torch.nn.init.zeros_(model.scores.bias)
    assert data.score(model, torch.float32) == pytest.approx(math.log(model.scores.out_features))


# The file


def arguments(path, *more):
    chosen = ["--tasks", "transformer", "--optimizers", "sgd", "--formats", "float32", "8bit"]
    return [*chosen, "--json", str(path), *more]


def test_runs_are_added_and_not_repeated(tmp_path, monkeypatch, capsys, threads):
    trained = []
    monkeypatch.setattr(benchmark, "train", lambda *run: trained.append(run) or replace(RUN, **_of(run)))
    path = tmp_path / "results.json"
    benchmark.main(arguments(path, "--seeds", "3", "--steps", "7"))
    benchmark.main(arguments(path, "--seeds", "3", "4", "--steps", "7"))
    assert trained == [("transformer", "sgd", name, seed, 7) for seed in (3, 4) for name in ("float32", "8bit")]
    found = json.loads(path.read_text())
    assert [(row["format"], row["seed"], row["session"]) for row in found["runs"]] == [
        *(("8bit", 3, 0), ("8bit", 4, 1)),
        *(("float32", 3, 0), ("float32", 4, 1)),
    ]
    assert "--seeds 3 --steps 7" in found["sessions"][0]["command"]
    assert found["sessions"][1]["machine"]["threads"] == 1
    assert "| transformer | float32, 8-bit states | 0.800 ± 0.000 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other steps or rates"):
        benchmark.main(arguments(path, "--steps", "8"))


def _of(run):
    task, optimizer, name, seed, steps = run
    lr = SUBJECTS[task].lrs[optimizer]
    return {"task": task, "optimizer": optimizer, "format": name, "seed": seed, "steps": steps, "lr": lr}


def test_processes_train_as_one_does(tmp_path, threads):
    found = []
    for jobs in "12":
        benchmark.main(arguments(path := tmp_path / jobs, "--seeds", "0", "--steps", "1", "--jobs", jobs))
        found.append([(row["format"], row["score"]) for row in json.loads(path.read_text())["runs"]])
    assert found[0] == found[1]


# The table and the picture


def test_worse_is_beyond_both_spreads():
    reference = Cell.of(several([0.80, 0.82, 0.84]))
    assert (reference.mean, reference.spread) == pytest.approx((82, 2))
    assert str(reference) == "82.0 ± 2.0"
    assert not Cell.of(several([0.774, 0.794, 0.814])).is_worse(reference)  # 2.6 of the 2.8 that two runs differ by
    assert Cell.of(several([0.77, 0.79, 0.81])).is_worse(reference)
    assert not Cell.of(several([0.90, 0.91, 0.92])).is_worse(reference)
    assert str(Cell.of(several([0.5]))) == "50.0"


def test_less_is_better_of_losses():
    reference, more, less = (Cell.of(several([x, x + 0.1], task="transformer")) for x in (1.5, 1.7, 1.3))
    assert str(reference) == "1.550 ± 0.071"
    assert more.is_worse(reference)
    assert not less.is_worse(reference)
    assert Cell.of(several([math.nan, 1.5], task="transformer")).is_worse(reference)


def test_table_has_what_is_worse_in_bold():
    runs = several([0.80, 0.82]) + several([0.60, 0.62], format="8bit", bytes_per_parameter=6.1)
    assert markdown(runs).splitlines() == [
        "| | stored in | AdamW | bytes |",
        "| --- | --- | ---: | ---: |",
        "| LeNet | float32 | 81.0 ± 1.4 | 12.0 |",
        "| LeNet | float32, 8-bit states | **61.0 ± 1.4** | 6.1 |",
    ]


def test_differences_are_from_float32_with_the_same_optimizer_and_seed():
    runs = several([0.80, 0.90]) + several([0.79, 0.86], format="8bit") + several([0.85, 0.90], format="masters")
    runs += several([0.1, 0.2], optimizer="sgd", format="8bit")  # which has no float32 to compare with
    runs += several([1.5, 1.6], task="transformer") + several([1.51, 1.62], task="transformer", format="8bit")
    assert differences(runs).splitlines() == [
        "| stored in | LeNet, points | transformer, nats |",
        "| --- | ---: | ---: |",
        "| bfloat16, masters, float32 states | +2.5 ± 2.5 |  |",
        "| float32, 8-bit states | -2.5 ± 1.5 | **+0.015 ± 0.005** |",
    ]


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    runs = several([0.80, 0.82]) + several([0.7], format="8bit") + several([0.9, 0.8], format="masters-8bit")
    plot([*runs, *several([1.5, 1.6], task="transformer", optimizer="sgd")], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
