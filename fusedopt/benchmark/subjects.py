"""What a comparison is about: a model, a list of shapes, or an optimizer at hand."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fusedopt.benchmark.parameter_sets import GPU_SETS, SETS, Shape

_SHAPES = re.compile(r"(?:(?P<count>\d+)\*)?(?P<shape>\d+(?:x\d+)*)")
_IMAGE = (3, 224, 224)


@dataclass(frozen=True)
class Subject:
    """Parameters to step, on the CPU, and the model they belong to where there is one.

    Attributes:
        name: for people.
        parameters: those that are trained.
        model: None where only shapes are known.
        input_shape: of one input of the model, None where it is not known.
    """

    name: str
    parameters: tuple[Tensor, ...]
    model: nn.Module | None = None
    input_shape: Shape | None = None

    @property
    def elements(self) -> int:
        """Number of parameters, one by one."""
        return sum(p.numel() for p in self.parameters)

    def drawn(self, dtype: torch.dtype | None, device: torch.device) -> list[Parameter]:
        """Copies of the parameters, with gradients drawn from N(0, 1e-6).

        Their squares stay far above the subnormal numbers, which are slow to compute with.
        """
        generator = torch.Generator(device).manual_seed(0)
        copies = []
        for p in self.parameters:
            kind = p.dtype if dtype is None or not p.is_floating_point() else dtype
            copy = Parameter(p.detach().to(device, kind, copy=True))
            copy.grad = torch.empty_like(copy).normal_(0, 1e-3, generator=generator)
            copies.append(copy)
        return copies


def of_shapes(shapes: Sequence[Shape], name: str | None = None) -> Subject:
    """Parameters of these shapes.

    Raises:
        ValueError: a shape is none, or there is none.
    """
    if not shapes:
        raise ValueError("there are no shapes to compare optimizers on")
    for shape in shapes:
        if not isinstance(shape, Sequence) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"a shape is a sequence of sizes, such as (64, 3, 7, 7), not {shape!r}")
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(tuple(shape), generator=generator).mul_(0.05) for shape in shapes)
    return Subject(name or f"{len(tensors)} shapes", tensors)


def of_model(model: nn.Module, name: str | None = None, input_shape: Shape | None = None) -> Subject:
    """The parameters of a model that are trained.

    Raises:
        ValueError: it has none.
    """
    parameters = tuple(p for p in model.parameters() if p.requires_grad)
    if not parameters:
        raise ValueError(f"{name or type(model).__name__} has no parameter that requires a gradient")
    return Subject(name or type(model).__name__, parameters, model, input_shape)


def find_subject(text: str) -> Subject:
    """A subject by name.

    Args:
        text: ``torchvision:resnet50``, ``timm:vit_tiny_patch16_224``, ``package.module:factory`` that makes a model,
            the name of a parameter set such as ``resnet50``, or shapes: ``1000*64,128x256``.

    Raises:
        ValueError: there is no such thing, with what there is.
    """
    sets = {**GPU_SETS, **SETS}
    if text in sets:
        return of_shapes(sets[text].shapes, sets[text].title)
    source, colon, name = text.partition(":")
    if colon:
        makers = {"torchvision": _torchvision, "timm": _timm}
        return makers[source](name) if source in makers else _factory(source, name)
    shapes = list(_shapes(text))
    return of_shapes(shapes, text)


def _shapes(text: str) -> Iterator[Shape]:
    for part in text.split(","):
        match = _SHAPES.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"{text!r} is neither torchvision:NAME, timm:NAME, package.module:factory, a list of shapes such as "
                f"1000*64,128x256, nor one of {', '.join({**GPU_SETS, **SETS})}"
            )
        shape = tuple(int(size) for size in match["shape"].split("x"))
        yield from [shape] * int(match["count"] or 1)


def _torchvision(name: str) -> Subject:
    models = _module("torchvision.models")
    try:
        model = models.get_model(name, weights=None)
    except ValueError as error:
        raise ValueError(f"torchvision has no model {name!r}; it has {', '.join(models.list_models())}") from error
    return of_model(model, f"torchvision:{name}", _IMAGE)


def _timm(name: str) -> Subject:
    timm = _module("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() has all")
    model = timm.create_model(name, pretrained=False)
    return of_model(model, f"timm:{name}", tuple(model.default_cfg.get("input_size", _IMAGE)))


def _factory(source: str, name: str) -> Subject:
    if os.getcwd() not in sys.path:  # which the `fusedopt` command does not look into by itself
        sys.path.insert(0, os.getcwd())
    made: Any = _module(source)
    for part in name.split("."):
        if not hasattr(made, part):
            raise ValueError(f"{source} has no {name}")
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        try:
            inspect.signature(made).bind()
        except TypeError as error:
            raise ValueError(
                f"{source}:{name} cannot be called without arguments ({error}): name a function that makes the model"
            ) from error
    model = made if isinstance(made, nn.Module) else made()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source}:{name} made {type(model).__name__}, not a torch.nn.Module")
    return of_model(model, f"{source}:{name}")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that it needs
        raise ValueError(
            f"there is no module {error.name}; is it installed (pip install {error.name}), or spelled otherwise?"
        ) from error
