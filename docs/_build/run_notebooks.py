"""Runs the notebooks in docs/notebooks and keeps their output, which the site shows: make notebooks.

Pictures are kept with 128 colours, a third of the bytes. What belongs to one run is left out: when a cell ran, and what
libraries print on standard error about the environment.
"""

import base64
import io
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image


def smaller(picture: str) -> str:
    """Returns a PNG in base64 with 128 colours."""
    target = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(target, "png", optimize=True)
    return base64.b64encode(target.getvalue()).decode()


for path in sorted(Path("docs/notebooks").glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                output["data"] = {"image/png": smaller(picture)}
    nbformat.write(notebook, path)
    print(path)
