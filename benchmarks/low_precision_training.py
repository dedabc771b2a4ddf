"""The trainings of `low_precision.py`: what is learned, what numbers are stored in, and one run."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedopt.data import Normalize
from fusedopt.schedulers.named import Schedule
from fusedopt.tasks import TASKS
from fusedopt.training import accuracy, batches, make_optimizer, seeded

IMAGES, PIECES = 64, 32  # of a batch
CONTEXT = 64  # characters of a piece


@dataclass(frozen=True)
class Format:
    """What the parameters are stored in, and computed with, and what else the optimizer is told."""

    title: str
    dtype: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)


FORMATS = {
    "float32": Format("float32", torch.float32),
    "bfloat16": Format("bfloat16, as torch", torch.bfloat16),
    "masters": Format(
        "bfloat16, masters, float32 states", torch.bfloat16, {"master_weights": True, "state_dtype": torch.float32}
    ),
    "stochastic": Format("bfloat16, stochastic", torch.bfloat16, {"stochastic_rounding": True}),
    "8bit": Format("float32, 8-bit states", torch.float32, {"state_dtype": "8bit"}),
    "8bit-stochastic": Format(
        "float32, 8-bit states, stochastic", torch.float32, {"state_dtype": "8bit", "stochastic_rounding": True}
    ),
    "masters-8bit": Format(
        "bfloat16, masters, 8-bit states", torch.bfloat16, {"master_weights": True, "state_dtype": "8bit"}
    ),
}
OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD, momentum", "lamb": "LAMB"}


class Images:
    """A data set of images and a network that learns it; the score is the accuracy on the test images, 0 to 1."""

    def __init__(self, dataset: str, network: str) -> None:
        self._task, self._network = TASKS[dataset], network
        self._data = self._task.load(None, print)
        self._normalize = Normalize(self._data.train_images)

    def network(self) -> nn.Module:
        """Makes the network, with fresh weights."""
        return self._task.network(self._network).to(memory_format=torch.channels_last)  # quicker, most of all bfloat16

    def batches(self, generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields inputs and targets, forever."""
        while True:
            for images, labels in batches(self._data.train_images, self._data.train_labels, IMAGES, generator):
                yield self._normalize(images).to(dtype), labels

    def score(self, model: nn.Module, dtype: torch.dtype) -> float:
        """The accuracy of a model in that dtype."""
        inputs: Any = lambda images: self._normalize(images).to(dtype)  # noqa: E731
        return accuracy(model, self._data.test_images, self._data.test_labels, inputs)


class Text:
    """The help texts that come with Python, in order of their names, the last tenth held out.

    The score is the mean cross-entropy of a held-out character, in nats, given the 1 to CONTEXT characters before it.
    """

    def __init__(self) -> None:
        from pydoc_data.topics import topics

        text = "\n".join(topics[name] for name in sorted(topics))
        self._alphabet = sorted(set(text))
        numbers = {character: number for number, character in enumerate(self._alphabet)}
        encoded = torch.tensor([numbers[character] for character in text])
        self._train, self._test = encoded.tensor_split([len(encoded) * 9 // 10])

    def network(self) -> nn.Module:
        """Makes the network, with fresh weights."""
        return CharacterModel(len(self._alphabet))

    def batches(self, generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields inputs and targets, forever; they are integers, whatever the dtype of the model."""
        while True:
            starts = torch.randint(len(self._train) - CONTEXT, (PIECES, 1), generator=generator)
            pieces = self._train[starts + torch.arange(CONTEXT + 1)]
            yield pieces[:, :-1], pieces[:, 1:]

    @torch.no_grad()
    def score(self, model: nn.Module, dtype: torch.dtype) -> float:
        """The loss of a model."""
        model.eval()
        count = (len(self._test) - 1) // CONTEXT
        inputs, targets = (self._test[i : i + count * CONTEXT].view(count, CONTEXT) for i in (0, 1))
        pairs = zip(inputs.split(PIECES), targets.split(PIECES), strict=True)
        return sum(loss_of(model(x), y).item() * len(y) for x, y in pairs) / count


class CharacterModel(nn.Module):
    """A transformer: characters int64 [N, length <= CONTEXT] to the scores of each next one [N, length, alphabet]."""

    def __init__(self, alphabet: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(alphabet, width), nn.Embedding(CONTEXT, width)
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        """Returns the scores."""
        length = characters.shape[1]
        features = self.characters(characters) + self.positions.weight[:length]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        for layer in self.layers:
            features = layer(features, src_mask=hidden, is_causal=True)
        scores: Tensor = self.scores(self.norm(features))
        return scores


@dataclass(frozen=True)
class Subject:
    """A network and its data, the steps of a training, and the highest learning rate with each optimizer.

    Attributes:
        is_loss: whether the score is a loss, so that less is better, and not an accuracy.
    """

    title: str
    make: Callable[[], Images | Text]
    steps: int
    lrs: dict[str, float]
    is_loss: bool = False


# Learning rates: of 1 and 3 times the powers of 10 the best in float32 with seed 1000, and where others come within 1.5
# points of its accuracy, the lowest of them.
SUBJECTS = {
    "lenet": Subject(
        "LeNet", lambda: Images("fashion-mnist", "lenet"), 1000, {"adamw": 3e-3, "sgd": 0.03, "lamb": 1e-2}
    ),
    "resnet9": Subject(
        "ResNet-9", lambda: Images("fashion-mnist", "resnet9-small"), 300, {"adamw": 3e-3, "sgd": 0.03, "lamb": 1e-2}
    ),
    "cnn2": Subject("CNN2", lambda: Images("rps", "cnn2"), 1000, {"adamw": 3e-3, "sgd": 0.03, "lamb": 1e-2}),
    "transformer": Subject("transformer", Text, 500, {"adamw": 1e-2, "sgd": 0.3, "lamb": 3e-2}, is_loss=True),
}


@dataclass(frozen=True)
class Run:
    """One training: what it was, and what came out.

    Attributes:
        score: see `Images` and `Text`.
        bytes_per_parameter: of parameters and states, without gradients.
        seconds: of the training.
        session: the place in the file's list of commands and machines.
    """

    task: str
    optimizer: str
    format: str
    seed: int
    steps: int
    lr: float
    score: float
    bytes_per_parameter: float
    seconds: float
    session: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes it another run."""
        return self.task, self.optimizer, self.format, self.seed


def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy, computed in float32."""
    return F.cross_entropy(scores.flatten(0, -2).float(), targets.flatten())


@functools.cache
def data_of(task: str) -> Images | Text:
    """The data, read once by each process."""
    return SUBJECTS[task].make()


def train(task: str, optimizer_name: str, format_name: str, seed: int, steps: int, lr: float | None = None) -> Run:
    """Trains once; the learning rate rises for a quarter of the steps, and falls to a tenth as a cosine."""
    start = perf_counter()
    data, form = data_of(task), FORMATS[format_name]
    lr = SUBJECTS[task].lrs[optimizer_name] if lr is None else lr
    torch.manual_seed(seed)  # of dropout
    model = seeded(data.network, seed).to(form.dtype)
    optimizer = make_optimizer(optimizer_name, model.parameters(), lr=lr, **form.options)
    schedule = Schedule("warmup-cosine", optimizer, steps)
    pairs = data.batches(torch.Generator().manual_seed(seed), form.dtype)
    model.train()
    for _ in range(steps):
        inputs, targets = next(pairs)
        optimizer.zero_grad()
        loss_of(model(inputs), targets).backward()
        optimizer.step()
        schedule.advance()
    sizes = optimizer.memory()  # type: ignore[attr-defined]
    stored = (sum(sizes.values()) - sizes["gradients"]) / sum(p.numel() for p in model.parameters())
    seconds = perf_counter() - start
    return Run(task, optimizer_name, format_name, seed, steps, lr, data.score(model, form.dtype), stored, seconds)
