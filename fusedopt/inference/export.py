"""The network of a run and its normalization in one graph, for `torch.export` and ONNX, checked against the run."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fusedopt import files
from fusedopt.data import Normalize
from fusedopt.extras import named_if_missing
from fusedopt.files import FileError
from fusedopt.runs.folder import make_folder
from fusedopt.training import RunFolder

_WHITE = 255
_RELATIVE = 1e-4  # float32 sums in another order differ by about a tenth of that
_BATCHES = (1, 2, 7)  # that the exported network is tried with


class _Pixels(nn.Module):
    """A network that takes pixel values: uint8 from 0 to 255, or float32 from 0 to 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, normalize: Normalize, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        white = 1 if dtype == torch.uint8 else _WHITE
        self.register_buffer("mean", normalize.mean / white)
        self.register_buffer("scale", normalize.scale * white)

    def forward(self, images: Tensor) -> Tensor:
        """Returns scores [N, classes] for [N, C, H, W]."""
        scores: Tensor = self.network((images.float() - self.mean) * self.scale)
        return scores


def export_pt2(run: RunFolder, path: Path | str, dtype: torch.dtype = torch.uint8) -> float:
    """Writes the network as a program that torch reads without this package.

        program = torch.export.load("model.pt2").module()
        scores = program(images)

    The names of the classes are in its extra file `classes.json`.

    Args:
        run: has its weights.
        path: the file; its folder is made where it is missing.
        dtype: of the images [N, C, H, W], for any N: uint8 with values from 0 to 255, or float32 from 0 to 1.

    Returns:
        The largest absolute difference between its scores and those of the run's network, on random images.

    Raises:
        ValueError: the dtype is another.
        fusedopt.files.FileError: the two disagree, or the file cannot be written. What was there before is still there.
    """
    path = Path(path)
    model, example, dynamic = _prepare(run, dtype)
    program = torch.export.export(model, example, dynamic_shapes=dynamic)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"classes.json": _classes(run)})
    buffer.seek(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # PyTorch 2.11's, of its own buffer
        exported = torch.export.load(buffer).module()
    difference = _check(run, path, dtype, lambda images: exported(images))
    make_folder(path.parent)
    files.write(path, buffer.getvalue())
    return difference


def export_onnx(run: RunFolder, path: Path | str, dtype: torch.dtype = torch.uint8) -> float:
    """Writes the network as an ONNX model with the input `images` and the output `scores`, checked with onnxruntime.

    The names of the classes are in its metadata under `classes`, as JSON. Arguments, result and errors are those of
    `export_pt2`.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
    """
    path = Path(path)
    with named_if_missing():
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401, what torch's exporter needs

    model, example, dynamic = _prepare(run, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter has some about itself
        program = torch.onnx.export(
            model,
            example,
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is with dynamo
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"classes": _classes(run)})
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def exported(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])

    difference = _check(run, path, dtype, exported)
    make_folder(path.parent)
    files.write(path, content)
    return difference


FORMATS = {"pt2": export_pt2, "onnx": export_onnx}


def _prepare(run: RunFolder, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor], tuple[dict[int, torch.export.Dim]]]:
    """The network that takes pixel values, an example of them, and which of their dimensions may vary."""
    if dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"images must be torch.uint8 or torch.float32, not {dtype}")
    model = _Pixels(run.load_model(), run.normalize, dtype).eval()
    return model, (_random_images(run, 2, dtype),), ({0: torch.export.Dim("batch")},)


def _classes(run: RunFolder) -> str:
    return json.dumps(run.config.classes)


def _random_images(run: RunFolder, count: int, dtype: torch.dtype) -> Tensor:
    shape = (count, run.config.channels, run.config.size, run.config.size)
    pixels = torch.randint(_WHITE + 1, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return pixels if dtype == torch.uint8 else pixels / _WHITE


@torch.no_grad()
def _check(run: RunFolder, path: Path, dtype: torch.dtype, exported: Callable[[Tensor], Tensor]) -> float:
    """Returns the largest difference between the exported network and the original, or raises FileError."""
    original, normalize, largest = run.load_model(), run.normalize, 0.0
    for count in _BATCHES:
        expected = original(normalize(_random_images(run, count, torch.uint8)))
        difference = float((exported(_random_images(run, count, dtype)) - expected).abs().max())
        if not difference <= _RELATIVE * max(1.0, float(expected.abs().max())):
            reason = f"the exported network's scores differ by {difference:.3g} from the run's"
            raise FileError(f"{path}: not written, as {reason}; export it in another format")
        largest = max(largest, difference)
    return largest
