"""The parameter sets on which a step is timed: the exact shapes of real models, and two extremes."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterSet:
    """The shapes of a model's parameters, in the model's own order."""

    name: str
    title: str
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        """Number of elements over all tensors."""
        return sum(prod(shape) for shape in self.shapes)

    def tiny(self) -> "ParameterSet":
        """A few small tensors under the same name, to rehearse a measurement with."""
        return ParameterSet(self.name, self.title, tuple((min(prod(shape), 8),) for shape in self.shapes[:3]))

    def parameters(self, dtype: torch.dtype, device: torch.device) -> list[torch.nn.Parameter]:
        """Random parameters with gradients.

        Gradients are N(0, 1e-6): their squares stay far above the subnormal numbers, which are slow to compute with.
        """
        generator = torch.Generator(device).manual_seed(0)

        def normal(shape: Shape, deviation: float) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).mul_(deviation).to(dtype)

        parameters = [torch.nn.Parameter(normal(shape, 0.05)) for shape in self.shapes]
        for parameter in parameters:
            parameter.grad = normal(tuple(parameter.shape), 1e-3)
        return parameters


def _lenet() -> Iterator[Shape]:
    """Two 5x5 convolutions (1-6-16 channels) and three linear layers (256-120-84-10), each with a bias."""
    for weight in ((6, 1, 5, 5), (16, 6, 5, 5), (120, 256), (84, 120), (10, 84)):
        yield from (weight, weight[:1])


def _resnet50() -> Iterator[Shape]:
    """ResNet-50: bottleneck blocks of three convolutions without bias, each with a batch norm's weight and bias."""

    def convolution(out: int, into: int, kernel: int) -> Iterator[Shape]:
        yield from ((out, into, kernel, kernel), (out,), (out,))

    yield from convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from ((1000, 2048), (1000,))


def _bert_large(width: int = 1024, layers: int = 24, vocabulary: int = 30522, context: int = 512) -> Iterator[Shape]:
    """BERT-large with its two pre-training heads; the output layer shares the word embedding."""
    norm = ((width,), (width,))
    square = ((width, width), (width,))
    yield from ((vocabulary, width), (context, width), (2, width), *norm)
    for _ in range(layers):
        yield from (*square, *square, *square, *square, *norm)
        yield from ((4 * width, width), (4 * width,), (width, 4 * width), (width,), *norm)
    yield from square  # the pooler
    yield from ((vocabulary,), *square, *norm, (2, width), (2,))


def _gpt2(width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024) -> Iterator[Shape]:
    """GPT-2, as it stands 124M; the output layer shares the token embedding."""
    norm = ((width,), (width,))
    yield from ((vocabulary, width), (context, width))
    for _ in range(layers):
        yield from norm
        yield from ((width, 3 * width), (3 * width,), (width, width), (width,))
        yield from norm
        yield from ((width, 4 * width), (4 * width,), (4 * width, width), (width,))
    yield from norm


SETS: dict[str, ParameterSet] = {
    parameter_set.name: parameter_set
    for parameter_set in (
        ParameterSet("lenet", "LeNet", tuple(_lenet())),
        ParameterSet("small", "1,000 x 64", ((64,),) * 1000),
        ParameterSet("resnet50", "ResNet-50", tuple(_resnet50())),
        ParameterSet("large", "1 x 2^24", ((2**24,),)),
        ParameterSet("gpt2", "GPT-2 124M", tuple(_gpt2())),
    )
}

GPU_SETS: dict[str, ParameterSet] = {
    parameter_set.name: parameter_set
    for parameter_set in (
        SETS["lenet"],
        ParameterSet("thousand", "1,000 x 3,500", ((3500,),) * 1000),
        SETS["resnet50"],
        ParameterSet("bert-large", "BERT-large", tuple(_bert_large())),
        ParameterSet("gpt2-xl", "GPT-2 XL", tuple(_gpt2(width=1600, layers=48))),
        ParameterSet("giant", "1 x 2^30", ((2**30,),)),
    )
}
