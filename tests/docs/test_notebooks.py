"""The notebooks in docs/notebooks run, with small settings, and are kept with what they printed and drew."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
if not FOLDER.exists():
    pytest.skip("a copy of the tree without its pages", allow_module_level=True)
SMALL = {
    "learning_rate_finder": {"IMAGES": 1500, "EPOCHS": 1},  # with fewer images there is no suggestion
    "momentum_and_averages": {"STEPS": 5, "IMAGES": 96},
    "schedules_and_batch_size": {"IMAGES": 96, "EPOCHS": 3},
    "cnn_to_grad_cam": {"IMAGES": 96, "EPOCHS": 1, "WRONG": 3},
}


pytestmark = [pytest.mark.one_torch, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "rcParams", plt.rcParams.copy())
    first, *rest = code_cells(path)
    assert first["metadata"]["tags"] == ["parameters"]
    namespace: dict[str, Any] = {}
    exec("".join(first["source"]), namespace)
    assert SMALL[path.stem].keys() <= namespace.keys()
    namespace |= SMALL[path.stem]
    with torch.random.fork_rng():
        for number, cell in enumerate(rest):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)
    assert "False" not in capsys.readouterr().out  # what a cell compares agrees


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_is_kept_as_it_was_run(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not any(output["output_type"] == "error" for output in outputs)
