"""The learning rate finder on the example data sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fusedopt import models
from fusedopt.data import ImageData, Normalize
from fusedopt.extras import named_if_missing
from fusedopt.lr_finder import LRFinderResult, find_lr
from fusedopt.lr_finder.sweep import Progress
from fusedopt.training import batches, make_optimizer, seeded
from fusedopt.training.batches import Batch, batch_sizes

with named_if_missing():
    from matplotlib.figure import Figure  # without pyplot: nothing global changes, and no display is needed


def _by_name(name: str) -> Callable[[ImageData], nn.Module]:
    def make(data: ImageData) -> nn.Module:
        _, channels, size, _ = data.train_images.shape
        return models.make_model(name, channels=channels, classes=len(data.classes), size=size)

    return make


MODELS: dict[str, Callable[[ImageData], nn.Module]] = {
    **{name: _by_name(name) for name in models.MODELS},
    "mlp": lambda data: models.MLP([data.train_images[0].numel(), 256, 128, len(data.classes)]),
}


class TrainingBatches:
    """Normalised batches of the training images, in another order on each pass.

    Args:
        data: the images.
        batch_size: images per batch, or how many each batch has.
        seed: of the order.
    """

    def __init__(self, data: ImageData, batch_size: int | Sequence[int], seed: int) -> None:
        self._images, self._labels, self._batch_size = data.train_images, data.train_labels, batch_size
        self._normalize = Normalize(data.train_images)
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in batches(self._images, self._labels, self._batch_size, self._generator):
            yield self._normalize(images), labels


def find_on(
    data: ImageData,
    model_name: str,
    optimizer_name: str,
    *,
    batch_size: int = 64,
    seed: int = 0,
    start_lr: float = 1e-7,
    end_lr: float = 10,
    num_iter: int = 100,
    progress: Progress | None = None,
) -> LRFinderResult:
    """Runs the finder on a fresh network.

    Args:
        data: the images.
        model_name: a key of `MODELS`.
        optimizer_name: one of `optimizer_names()`.
        batch_size, seed: of the weights and of the order of the images.
        start_lr, end_lr, num_iter, progress: as in `find_lr`.

    Raises:
        ValueError: a name is unknown, or an argument wrong.
    """
    model = make_model(model_name, data, seed)
    optimizer = make_optimizer(optimizer_name, model.parameters())
    loader = TrainingBatches(data, batch_sizes(model, data, batch_size), seed)
    criterion: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss()
    return find_lr(
        model,
        optimizer,
        criterion,
        loader,
        start_lr=start_lr,
        end_lr=end_lr,
        num_iter=num_iter,
        progress=progress,
    )


def make_model(name: str, data: ImageData, seed: int) -> nn.Module:
    """Makes a network for the images.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    return seeded(lambda: MODELS[name](data), seed)


def report(result: LRFinderResult) -> str:
    """The suggestions as a table, with what each method reads off the curve and why one has none.

    Where all have none for the same reason, it stands there once.
    """
    reads = {
        "steepest": "where the loss falls fastest",
        "valley": "half-way down the longest fall",
        "slide": "before the slope at the end sets in",
        "minimum": "a tenth of where the loss is lowest",
    }
    suggestions, refusals = result.suggestions, result.refusals
    lines = [f"{len(result.lrs)} learning rates from {result.lrs[0]:.1e} to {result.lrs[-1]:.1e}: {result.stopped}"]
    if len({*refusals.values()}) == 1 and not suggestions:
        return f"{lines[0]}\nno suggested learning rate: {refusals[result.method]}"
    for method, meaning in reads.items():
        if method in suggestions:
            lines.append(f"  {method:<9} {suggestions[method]:.2e}  {meaning}")
        else:
            lines.append(f"  {method:<9} none: {refusals[method]}")
    if result.method in suggestions:
        lines.append(f"suggested learning rate: {suggestions[result.method]:.2e} ({result.method})")
    else:
        lines.append("no suggested learning rate")
    return "\n".join(lines)


# What `find_lr` says about its arguments, in the options of the command; of what has no option nothing is said.
_OPTIONS = {
    r"iterations \(num_iter\)|`num_iter`|num_iter": "--iterations",
    r"larger batches, several steps per learning rate, or a validation set": "a larger --batch-size",
    r"smooth the losses more \(smooth_f\)": "take a larger --batch-size",
    r",? or (leave early stop on \(diverge_th\)|skip fewer)": "",
    r" above 0, leave it out [^;]*step_mode='linear'|, or use step_mode='linear'": "",
    r"with skip_start=(\d+) and skip_end=(\d+)": r"without the first \1 and the last \2",
    r", or start from a model that is not trained yet": "",
    r"\b(start|end)_lr\b": r"--\1-lr",
}


def in_options(text: str) -> str:
    """Returns what `find_lr` says in the words of the command."""
    for words, option in _OPTIONS.items():
        text = re.sub(words, option, text)
    return text


def draw(result: LRFinderResult, title: str) -> Figure:
    """Returns the picture of a range test."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = result.plot(figure.subplots())
    axes.set_title(title if not axes.get_title() else f"{title}\n{axes.get_title()}", fontsize=11)
    return figure
