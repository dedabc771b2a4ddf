"""`fusedopt tune`: every method, studies that go on, several processes, and what is refused."""

import re
import struct
import sys
from functools import partial

import command_line
import pytest
import torch

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

from fusedopt.data import hold_out, make_hands  # noqa: E402
from fusedopt.files import FileError  # noqa: E402
from fusedopt.tasks import TASKS, Task  # noqa: E402
from fusedopt.tuning import METHODS, Search, finished, make_space, open_study, run, search  # noqa: E402

pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]
SPACE = ("lr=1e-4..0.05", "batch-size=16,32", "momentum=0.8..0.95")
GRID = ("lr=1e-3,1e-4", "batch-size=16", "optimizer=adamw,torch.sgd")


@pytest.fixture(scope="module")
def data():
    return hold_out(make_hands(90, 3), 0.2)


def make(method="random", texts=None, **options):
    texts = (GRID if method == "grid" else SPACE) if texts is None else texts
    return Search("hands", method, make_space(texts, grid=method == "grid"), epochs=options.pop("epochs", 1), **options)


def parameters(trials):
    return [trial.params for trial in trials]


def search_all(what, data, trials=None, path=None, **options):
    with open_study(what, path) as study:
        return list(run(study, what, data, trials, path=path, **options))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_repeats_with_its_seed_and_goes_on_as_if_uninterrupted(data, tmp_path, method):
    straight = search_all(make(method), data, 4)
    assert [trial.number for trial in straight] == [0, 1, 2, 3]
    assert len({str(params) for params in parameters(straight)}) == 4
    path = tmp_path / "study.db"
    parts = search_all(make(method), data, 2, path), search_all(make(method), data, 4, path)
    assert [len(part) for part in parts] == [2, 2]
    assert parameters([*parts[0], *parts[1]]) == parameters(straight)
    assert [t.values for part in parts for t in part] == [t.values for t in straight]
    assert search_all(make(method), data, 4, path) == []
    other = search_all(make(method, seed=1), data, 2)
    assert parameters(other) != parameters(straight[:2])


def test_an_optimizer_is_not_given_what_it_does_not_take(data):
    trials = search_all(make(texts=["optimizer=rprop,lars,torch.adamax", "batch-size=72"]), data, 8)
    taken = {t.params["optimizer"]: t.params.keys() & {"momentum", "weight-decay"} for t in trials}
    assert taken == {"rprop": set(), "lars": {"momentum", "weight-decay"}, "torch.adamax": {"weight-decay"}}


def test_grid_takes_each_point_once_and_ends(data):
    trials = search_all(make("grid"), data)
    points = sorted((t.params["optimizer"], t.params["lr"]) for t in trials)
    assert points == [(o, lr) for o in ("adamw", "torch.sgd") for lr in (1e-4, 1e-3)]
    assert len(search_all(make("grid"), data, 9)) == 4


@pytest.mark.parametrize("method", ["bayes", "genetic"])
def test_methods_learn_from_what_they_have_seen(monkeypatch, method):
    """On a function with a known peak in place of a training, they come nearer to it than a random search."""

    def closeness(self, trial, data):
        return -abs(torch.tensor(search.suggest(trial, self.space).lr / 3e-3).log().item())

    monkeypatch.setattr(Search, "objective", closeness)
    medians = []
    for name in (method, "random"):
        what = make(name, ["optimizer=adamw", "lr=1e-6..1", "batch-size=16"])
        medians.append(torch.tensor([trial.values[0] for trial in search_all(what, None, 48)[24:]]).median())
    assert medians[0] > 0.7 * medians[1]


@pytest.mark.parametrize("method", ["halving", "hyperband"])
def test_trials_that_are_behind_are_stopped(data, monkeypatch, method):
    what = make(method, ["optimizer=sgd", "lr=1e-4..0.1", "batch-size=16"], epochs=9)
    accuracies = iter([0.9, 0.8, 0.3, 0.2, 0.1, 0.25, 0.05, 0.15])

    class Epochs:
        train_loss = test_loss = 1.0

        def __init__(self, *arguments, **options):
            self.accuracy, self.number = next(accuracies), 0

        def __iter__(self):
            return self

        def __next__(self):
            self.number += 1
            if self.number > 9:
                raise StopIteration
            return self

    monkeypatch.setattr(search, "train", Epochs)
    trials = search_all(what, data, 8)
    lengths = [max(trial.intermediate_values) for trial in trials]
    assert lengths[0] == 9  # nothing to compare with
    assert min(lengths[2:]) == 1
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    assert all((trial.state.name == "PRUNED") == (n < 9) for trial, n in zip(trials, lengths, strict=True))


def test_two_processes_share_a_study(data, tmp_path):
    path = tmp_path / "study.db"
    trials = search_all(make(), data, 4, path, processes=2)
    assert sorted(trial.number for trial in trials) == [0, 1, 2, 3]
    assert len({str(params) for params in parameters(trials)}) == 4
    one = {str(t.params): t.values for t in search_all(make(), data, 4)}
    assert {str(t.params): t.values for t in trials} == one
    with open_study(make(), path) as study:
        assert finished(study) == 4
    with open_study(make()) as study, pytest.raises(ValueError, match="need the file of the study"):
        list(run(study, make(), data, 2, processes=2))


@pytest.mark.parametrize("how", ["ctrl-c", "killed"])
def test_interrupted_trials_are_repeated_and_finished_ones_kept(data, tmp_path, monkeypatch, how):
    """On a grid, which would otherwise lack a point in the end."""
    path, what = tmp_path / "study.db", make("grid")
    straight = search_all(what, data, 4)
    search_all(what, data, 1, path)
    if how == "ctrl-c":
        monkeypatch.setattr(search, "train", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search_all(what, data, 4, path)
        monkeypatch.undo()
    else:
        with open_study(what, path) as study:
            study.sampler = what.sampler(1)
            search.suggest(study.ask(), what.space)  # and nothing more, as if the machine had gone down
    rest = search_all(what, data, 4, path)
    with open_study(what, path) as study:
        kept = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert len(rest) == 3
    expected = {str(trial.params): trial.values for trial in straight}
    assert {str(trial.params): trial.values for trial in kept} == expected
    assert search_all(what, data, 4, path) == []


def test_a_file_of_another_search_is_refused_and_left_as_it_is(data, tmp_path):
    path = tmp_path / "study.db"
    search_all(make(), data, 1, path)
    content = path.read_bytes()
    for what, message in [
        (make(epochs=2), "holds a search with epochs 1, not 2; repeat that or name another --study"),
        (make(method="bayes"), "method random, not bayes"),
        (make(texts=["lr=1e-3..1e-2"]), r"lr \[0.0001, 0.05\], not \[0.001, 0.01\]"),
    ]:
        with pytest.raises(FileError, match=message), open_study(what, path):
            pass
    with open_study(make(), path), pytest.raises(FileError, match="is in use by another search"):
        search_all(make(), data, 2, path)
    assert path.read_bytes() == content
    text = tmp_path / "text"
    text.write_text("something else" * 99)
    with pytest.raises(FileError, match="text: cannot be used as a study"), open_study(make(), text):
        pass
    assert text.read_text() == "something else" * 99
    with pytest.raises(FileError, match=r"no/study\.db\.lock: cannot be written"):
        search_all(make(), data, 1, tmp_path / "no" / "study.db")


@pytest.mark.parametrize(
    ("texts", "grid", "message"),
    [
        (["rate=1"], False, "cannot read 'rate=1'; write NAME=VALUE,VALUE or NAME=LOW..HIGH for optimizer, lr,"),
        (["lr"], False, "cannot read 'lr'"),
        (["lr=fast"], False, "lr: 'fast' is not a number"),
        (["lr=nan"], False, "lr: nan is out of range"),
        (["lr=0..0.1"], False, "lr: 0 is out of range"),
        (["lr=0.1..0.01"], False, "the first value must be below the second"),
        (["weight-decay=0..0.1"], False, "a logarithmic range begins above 0"),
        (["momentum=0.5..1"], False, "momentum: 1 is out of range"),
        (["batch-size=2.5"], False, "batch-size: '2.5' is not a whole number"),
        (["batch-size=0"], False, "batch-size: 0 is out of range"),
        (["batch-size=2147483648"], False, "batch-size: 2147483648 is out of range"),
        (["optimizer=lions"], False, "unknown optimizer 'lions'; choose from sgd,"),
        (["optimizer=adam..sgd"], False, "optimizers have no order"),
        (["optimizer=adam", "momentum=0.9"], False, "adam takes no momentum"),
        (["momentum=0.9,0.99"], True, "adamw takes no momentum"),
        (["optimizer=rprop", "weight-decay=0.1"], False, "rprop takes no weight decay; search other optimizers, or "),
        (["optimizer=adam,torch.rprop", "weight-decay=0.1"], True, "torch.rprop takes no weight decay"),
        (["lr=0.01..0.1"], True, "a grid needs choices"),
        (["lr=0.1", "lr=0.2"], False, "lr is given twice; name all of its values at once"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_spaces_are_refused(texts, grid, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_space(texts, grid=grid)


command = partial(command_line.run, "tune")


@pytest.fixture
def few_hands(monkeypatch):
    data = make_hands(90, 3)
    monkeypatch.setitem(TASKS, "hands", Task(lambda folder, notify: data, "lenet"))


@pytest.mark.usefixtures("few_hands")
def test_command_prints_a_training_that_gives_the_same_accuracy(tmp_path):
    options = ("--epochs", 3, "--method", "random", "--space", "lr=1e-5..5e-3", "--space", "batch-size=4,8")
    lines = command("hands", "--trials", 3, *options, "--seed", 4, "--out", tmp_path / "out").stdout.splitlines()
    assert all(re.match(rf"trial {i}: held-out accuracy [\d.]+ %: --optimizer", lines[i]) for i in range(3))
    accuracy = re.match(r"best of 3 trials: (held-out accuracy [\d.]+ %), with", lines[3])
    assert accuracy is not None
    best = max(lines[:3], key=lambda line: float(line.split()[4]))
    assert accuracy[1] in best
    numbers = re.findall(r"--(?:lr|momentum|weight-decay) (\S+)", "".join(lines))
    assert all(float(number) == float(f"{float(number):.3g}") for number in numbers)
    assert lines[4] == f"fusedopt train hands {best.split(': ')[2]} --epochs 3 --seed 4"
    arguments = [*lines[4].split()[1:], "--held-out", "0.2", "--quiet"]
    assert command_line.run(*arguments).stdout.startswith(accuracy[1])
    names = ["history", "slices", "epochs"]
    assert lines[5] == "pictures: " + ", ".join(str(tmp_path / "out" / f"{name}.png") for name in names)
    for name in names:
        content = (tmp_path / "out" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert min(struct.unpack(">2I", content[16:24])) > 300
        assert len(content) > 8_000  # an empty canvas of this size is smaller


@pytest.mark.usefixtures("few_hands")
def test_command_goes_on(tmp_path):
    options = ("hands", "--method", "halving", "--epochs", 1, "--study", tmp_path / "study.db")
    first = command(*options, "--trials", 2).stdout
    assert "trial 1: " in first
    second = command(*options, "--trials", 3).stdout.splitlines()
    assert second[0] == f"{tmp_path}/study.db holds 2 finished trials"
    assert [line.split(":")[0] for line in second[1:3]] == ["trial 2", "best of 3 trials"]
    assert len(command(*options, "--trials", 3, "--quiet").stdout.splitlines()) == 2


@pytest.mark.usefixtures("few_hands")
def test_command_says_what_is_wrong(tmp_path, monkeypatch):
    for arguments, message in {
        ("hands", "--method", "manual"): "unknown method 'manual'; choose from grid, random, bayes,",
        ("hands", "--space", "lr=x"): "lr: 'x' is not a number",
        ("hands", "--processes", "2"): "--processes needs --study",
        ("hands", "--held-out", "1"): "a share of 1 of 90 images leaves none",
        ("mnist",): "unknown data set 'mnist'",
        ("hands", "--model", "vgg"): "unknown model 'vgg'",
    }.items():
        assert message in command_line.plain(command(*arguments, code=2).stderr)
    (tmp_path / "file").write_bytes(b"")
    result = command("hands", "--trials", 1, "--epochs", 1, "--out", tmp_path / "file", code=1)
    assert result.stderr == f"fusedopt: {tmp_path}/file: cannot be made (File exists); name another folder\n"
    assert result.stdout == ""  # said before the search
    monkeypatch.setattr(search, "train", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    result = command("hands", "--trials", 1, "--study", tmp_path / "s.db", code=130)
    assert result.stderr == (
        f"fusedopt: stopped after 0 finished trials; the same command goes on with {tmp_path}/s.db\n"
    )


@pytest.mark.usefixtures("few_hands")
def test_a_setting_that_diverges_is_never_the_best():
    space = ("--space", "optimizer=sgd", "--space", "batch-size=16,128")  # 128: in the last step
    search_one = partial(command, "hands", "--method", "grid", "--epochs", 1, *space)
    lines = search_one("--space", "lr=1e-9,1e30").stdout.splitlines()  # whatever chance gives the second
    assert (
        sum("stopped after epoch 1 by a loss that is not finite: --optimizer sgd --lr 1e+30" in s for s in lines) == 2
    )
    assert "--lr 1e-09" in lines[-1]
    result = search_one("--space", "lr=1e30,1e31", code=1)
    assert result.stderr == (
        "fusedopt: no trial came to its last epoch; the loss was not finite in any; search lower values of lr\n"
    )


def test_missing_optuna_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith(("fusedopt.tuning", "optuna"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert command("hands", code=1).stderr == "fusedopt: optuna is not installed; pip install 'fusedopt[examples]'\n"
