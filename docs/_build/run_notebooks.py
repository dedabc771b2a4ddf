"""Runs the notebooks in docs/notebooks and keeps their outputs, which the site shows: make notebooks."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in sorted(Path("docs/notebooks").glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"] = {"image/png": output["data"]["image/png"]}
    nbformat.write(notebook, path)
    print(path)
