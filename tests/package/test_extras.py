"""Every entry that needs an extra names it, and the command that installs it, where it is missing."""

import json
import subprocess
import sys

import pytest

from fusedopt import extras

pytestmark = pytest.mark.one_torch

ENTRIES = {
    "import fusedopt.reports": "matplotlib",
    "import fusedopt.tuning": "matplotlib",
    "import fusedopt.examples.pictures": "matplotlib",
    "import fusedopt.examples.contact_sheet": "matplotlib",
    "import fusedopt.examples.figures": "matplotlib",
    "import fusedopt.examples.find_lr": "matplotlib",
    "import fusedopt.examples.demo": "matplotlib",
    "from fusedopt.benchmark.results import Comparison; Comparison.plot(None, 'x.png')": "matplotlib",
    "from fusedopt.schedulers.plot import plot_simulations; plot_simulations(['x'], [None])": "matplotlib",
    "from fusedopt.training import ProgressBar; ProgressBar()": "tqdm",
    "from pathlib import Path; from fusedopt.runs.events import EventLog; EventLog(Path())": "tensorboard",
    "from fusedopt.inference import export_onnx; export_onnx(None, 'x')": "onnx",
    "from fusedopt.data import read_image; read_image('x.png', 3, 16)": "PIL",
    "from fusedopt.data.image_files import open_image\nwith open_image('x.png', 'x.png'): pass": "PIL",
}
WITH_MATPLOTLIB = {
    "import fusedopt.tuning": "optuna",
    "from fusedopt.reports import evaluate; evaluate(None, None, None)": "torchmetrics",
    "from fusedopt.reports import attribute; attribute(None, None, None)": "captum",
}
SCRIPT = """
import json, sys
entries, hidden = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Hide())
told = {}
for entry in entries:
    try:
        exec(entry, {})
    except ModuleNotFoundError as error:
        told[entry] = [error.name, str(error)]
    except Exception as error:
        told[entry] = repr(error)
print(json.dumps(told))
"""


@pytest.mark.parametrize("entries", [ENTRIES, WITH_MATPLOTLIB], ids=["all", "with-matplotlib"])
def test_a_missing_extra_is_named_with_the_command(entries: dict[str, str]) -> None:
    hidden = extras.MODULES if entries is ENTRIES else [*entries.values()]
    command = [sys.executable, "-c", SCRIPT, json.dumps([*entries]), json.dumps(hidden)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = {
        entry: [name, f"{name} is not installed; pip install 'fusedopt[examples]'"] for entry, name in entries.items()
    }
    assert json.loads(done.stdout) == expected


def test_other_modules_are_nobodys_extras() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'nonsense'"), extras.named_if_missing():
        import nonsense  # noqa: F401
