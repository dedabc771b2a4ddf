"""README, CONTRIBUTING and the pages under docs/: snippets run and print what a page says, what is named is there."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import low_precision_report
import low_precision_training
import matplotlib.pyplot
import pytest
import torch
import typer.main
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fusedopt
from fusedopt import cli
from fusedopt.examples.pictures import TEMPERATURES
from fusedopt.models.lenet import GarmentClassifier

matplotlib.use("agg")
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
if not DOCS.exists():
    pytest.skip("a copy of the tree without its pages", allow_module_level=True)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
OPTIMIZERS = [
    name
    for name, cls in vars(fusedopt.optim).items()
    if isinstance(cls, type) and fusedopt.optim.FusedStep in cls.__mro__[1:]
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    matplotlib.pyplot.close("all")


def title(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def surroundings() -> dict[str, Any]:
    """What a snippet may take for granted: a training script in small."""
    model, criterion = GarmentClassifier(), nn.CrossEntropyLoss()
    params = list(model.parameters())
    weights = sum(p.numel() for p in params)
    optimizer = fusedopt.AdamW(params)
    dataset = TensorDataset(torch.randn(96, 1, 28, 28), torch.zeros(96, dtype=torch.long))
    train_loader = DataLoader(dataset, batch_size=16, shuffle=True)

    def train(model, optimizer):
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()

    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler, epochs, temperatures = torch.amp.GradScaler("cpu"), 2, TEMPERATURES
    _, ax = matplotlib.pyplot.subplots()
    return globals() | locals()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=title)
def test_snippets_print_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = surroundings() | {"__name__": page.stem}
    with mock.patch.dict(os.environ):  # a page says what torchrun sets
        for snippet in blocks(page, "python"):
            exec(compile(snippet, str(page), "exec"), namespace)
            expected = re.findall(r"^# -> (.*)$", snippet, re.MULTILINE)
            assert capsys.readouterr().out.splitlines() == expected
    matplotlib.pyplot.close("all")


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of each command on a page, without variables before it and comments after it."""
    lines = "".join(blocks(page, "bash")).splitlines()
    lines += re.findall(r"`((?:fusedopt|make|python(?: -m)?) [^`\n]+)`", page.read_text())
    for line in lines:
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            yield words


def check_command(words: list[str]) -> None:
    """Fails where a command names a subcommand, option, module, file or target that is not there."""
    targets = re.findall(r"^([a-z/_-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[:1] == ["torchrun"]:
        words = ["python", *words[words.index("-m") :]]
    match words:
        case ["fusedopt", *arguments] | ["python", "-m", "fusedopt", *arguments]:
            group = typer.main.get_command(cli.app)
            if arguments[0].startswith("-"):
                assert any(arguments[0] in parameter.opts for parameter in group.params) or arguments == ["--help"]
            elif arguments[1:] and arguments[0] != "run":  # what follows run is the script's own
                try:
                    group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
                except Exception as error:  # of the parser that Typer has inside, which it does not export
                    if type(error).__name__ != "MissingParameter":  # a text may name an option alone
                        raise
            else:
                assert arguments[0] in group.commands
        case ["python", "-m", module, *_]:
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or path.is_dir(), module
        case ["python", script, *_] if script.endswith(".py"):
            assert (ROOT / script).exists(), script
        case ["make", *arguments]:
            assert {word for word in arguments if "=" not in word} <= set(targets), arguments


@pytest.mark.parametrize("page", [page for page in PAGES if [*commands(page)]], ids=title)
def test_commands_and_their_options_are_there(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        check_command(words)


@pytest.mark.parametrize("wrong", ["fusedopt train hands --epohs 3", "make tests", "python benchmarks/steps.py"])
def test_commands_that_are_not_there_are_found(wrong):
    with pytest.raises(Exception, match=r"No such option|tests|steps"):
        check_command(wrong.split())


def test_links_and_pictures_are_there():
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / link).exists(), f"{title(page)} links to {link}"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_exported_and_has_its_places_in_the_docs(name):
    """By whatever is missing: docs/add_a_rule.md sends its readers here."""
    assert hasattr(fusedopt, name), f"{name} is in fusedopt.optim and not in fusedopt/__init__.py"
    pages = [page for page in (DOCS / "optimizers").glob("*.md") if page.read_text().startswith(f"# {name}\n")]
    assert len(pages) == 1, f"{len(pages)} pages in docs/optimizers/ begin with '# {name}': there has to be one"
    (page,) = pages
    assert f"::: fusedopt.{name}\n" in page.read_text(), f"{page} does not show the options: '::: fusedopt.{name}'"
    for other in (ROOT / "mkdocs.yml", DOCS / "optimizers" / "index.md"):
        assert re.search(rf"\b{page.name}\b", other.read_text()), f"{other} does not lead to {page.name}"
    rows = re.findall(r"^# -> (\D+?)  +\d", (DOCS / "memory.md").read_text(), re.MULTILINE)
    assert name in ", ".join(rows).split(", "), f"the table of bytes in docs/memory.md has no {name}"


RECORDED = {
    **{name: name for name in ("AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "Rprop")},
    **{name: name for name in ("LAMB", "LARS", "Lion", "SWATS")},
    "SGD": "SGD-Nesterov",
    "DeltaBarDelta": "DBD",
}
SETS = {
    "README.md": ("lenet", "small", "resnet50", "gpt2"),
    "speed.md": ("lenet", "small", "resnet50", "large", "gpt2"),
}


def page_of(name: str) -> Path:
    return DOCS / "optimizers" / f"{'delta_bar_delta' if name == 'DeltaBarDelta' else name.lower()}.md"


def recorded_speeds() -> dict[tuple[str, str, str], float]:
    """How many times faster a step is than torch's default and its fastest form: by form, optimizer, parameter set."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "cpu-step.json").read_text())["rows"]
    times = {(r["optimizer"], r["parameter_set"], r["implementation"]): r["us"]["median"] for r in rows}
    speeds = {}
    for row in rows:
        if row["implementation"] == "fusedopt":
            key = row["optimizer"], row["parameter_set"]
            speeds["fastest", *key] = row["ratio"]["median"]
            speeds["default", *key] = times[*key, "for-loop"] / row["us"]["median"]
    return speeds


def test_the_picture_of_the_speeds_is_of_the_recorded_benchmark():
    results = ROOT / "benchmarks" / "results"
    measured = json.loads((results / "cpu-step.json").read_text())["machine"]["date"]
    assert f"measured {measured}".encode() in (results / "cpu-step.png").read_bytes(), "see benchmarks/plot.py"


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "speed.md"], ids=title)
def test_speeds_are_those_of_the_recorded_benchmark(page):
    speeds, sets = recorded_speeds(), SETS[page.name]
    rows = re.findall(rf"^\| ({'|'.join(RECORDED)})(.*?) \|(.*x.*)\|$", page.read_text(), re.MULTILINE)
    assert {name for name, _, _ in rows} >= {"AdamW", "RMSprop", "LAMB"}
    for name, against, cells in rows:
        for cell, parameters in zip(cells.split("|"), sets, strict=True):
            forms = ["fastest", "default"] if "(" in cell else ["default" if "default" in against else "fastest"]
            for form, number in zip(forms, re.findall(r"([\d.]+)x", cell), strict=True):
                expected = speeds[form, RECORDED[name], parameters]
                assert float(number) == pytest.approx(expected, rel=0.03), (name, parameters, form)


@pytest.mark.parametrize("name", RECORDED)
def test_speeds_on_the_pages_of_optimizers_are_the_recorded_ones(name):
    speeds, text = recorded_speeds(), " ".join(page_of(name).read_text().split())
    for words, parameters in (("LeNet", "lenet"), ("ResNet-50", "resnet50")):
        numbers = re.findall(rf"{words} ([\d.]+)x \(default ([\d.]+)x\)", text)[0]
        for form, number in zip(("fastest", "default"), numbers, strict=True):
            assert float(number) == pytest.approx(speeds[form, RECORDED[name], parameters], rel=0.03)


def test_qualities_of_formats_are_those_of_the_recorded_benchmark():
    results = ROOT / "benchmarks" / "results" / "low-precision.json"
    runs = [low_precision_training.Run(**row) for row in json.loads(results.read_text())["runs"]]
    cells = low_precision_report.cells_of(runs)
    assert len(cells) == 4 * 3 * 7
    assert all(sum(run.key[:3] == key for run in runs) >= 3 for key in cells)
    text = (DOCS / "memory.md").read_text()
    assert low_precision_report.markdown(runs) in text
    assert low_precision_report.differences(runs) in text
