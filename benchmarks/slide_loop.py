"""The training loop that is taught, against `fusedopt.training.train`: one epoch, the same weights at its end.

The loop is that of a lecture on training a first network (a variant of PyTorch's "Training with PyTorch" tutorial,
https://docs.pytorch.org/tutorials/beginner/introyt/trainingyt.html): a shuffling `DataLoader` over a data set of
torchvision's with `ToTensor` and `Normalize`, batches of 4, `torch.optim.SGD(lr=0.001, momentum=0.9)`, `loss.item()`
after each step. Three things are changed, which cost it nothing, so that the results can be compared: the images are
standardized with their own mean and standard deviation instead of 0.5, their order comes from a given seed, and nothing
is written for TensorBoard.

The bound is forward and backward on batches that are there already: what would be left if the loader and the optimizer
cost nothing. The three take turns within each repeat. What makes forward and backward themselves faster can be chosen
for fusedopt's loop and the bound, by the options that `fusedopt train` has for it: PyTorch's own convolutions in place
of oneDNN's (for batches of a few small images, where oneDNN spends its time on preparations), channels-last weights and
bfloat16 (for large batches).

    python benchmarks/slide_loop.py                                 # Fashion-MNIST, GarmentClassifier, about 3 minutes
    python benchmarks/slide_loop.py --no-onednn
    python benchmarks/slide_loop.py --batch-size 256 --channels-last --amp bf16
    python benchmarks/slide_loop.py --task rps --repeats 10         # Rock-Paper-Scissors, CNN2
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import fusedopt
from fusedopt.benchmark.machine import machine_line
from fusedopt.benchmark.timing import OtherWork, Sample
from fusedopt.data import ImageData, Normalize, channel_statistics
from fusedopt.tasks import TASKS
from fusedopt.training import ResumableSampler, Settings, seeded, train
from fusedopt.training.compute import DTYPES, Precision, without_onednn

LR, MOMENTUM = 0.001, 0.9
BOUND_BATCHES = 256  # made before the clock starts, and used again and again


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets hand them out: `torchvision.datasets.MNIST.__getitem__`, for any channels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms

        mean, std = (values.tolist() for values in channel_statistics(images))
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = Image.fromarray(self.images[index].permute(1, 2, 0).squeeze(-1).numpy())
        return self.transform(image), int(self.labels[index])


@dataclass(frozen=True)
class Result:
    """One epoch: its seconds, the mean loss in it, and the trained network."""

    seconds: float
    loss: float
    model: nn.Module


def slide(model: nn.Module, data: ImageData, batch_size: int, seed: int) -> Result:
    """Train as the slides do."""
    sampler = ResumableSampler(len(data.train_labels), seed=seed)
    dataset = Pictures(data.train_images, data.train_labels)
    training_loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, generator=sampler.generator)
    loss_fn = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    model.train(True)
    total = 0.0
    start = perf_counter()
    for batch in training_loader:
        inputs, labels = batch
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = loss_fn(outputs, labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
    return Result(perf_counter() - start, total / len(data.train_labels), model)


def ours(model: nn.Module, data: ImageData, batch_size: int, seed: int, settings: Settings) -> Result:
    """Train with this package."""
    optimizer = fusedopt.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=settings.amp == "fp16")
    (epoch,) = train(model, optimizer, data, epochs=1, batch_size=batch_size, seed=seed, settings=settings)
    return Result(epoch.seconds, epoch.loss, model)


def bound(model: nn.Module, data: ImageData, batch_size: int, seed: int, settings: Settings) -> Result:
    """Run forward and backward alone, as often as an epoch has batches; no weight changes."""
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    precision = Precision(settings.amp, torch.device("cpu"))
    order = ResumableSampler(len(data.train_labels), seed=seed).remaining()
    normalize = Normalize(data.train_images)
    indices = torch.split(order, batch_size)
    batches = [(normalize(data.train_images[i]), data.train_labels[i]) for i in indices[:BOUND_BATCHES]]
    parameters = list(model.parameters())
    model.train()
    loss = torch.zeros(())
    with nullcontext() if settings.onednn else without_onednn():
        start = perf_counter()
        for images, labels in islice(cycle(batches), len(indices)):
            for parameter in parameters:
                parameter.grad = None
            loss = F.cross_entropy(precision(model, images), labels)
            loss.backward()
        seconds = perf_counter() - start
    return Result(seconds, loss.item(), model)


@torch.no_grad()
def final_loss(model: nn.Module, data: ImageData) -> float:
    """Return the mean cross-entropy on the test images."""
    model.eval()
    return F.cross_entropy(model(Normalize(data.train_images)(data.test_images)), data.test_labels).item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train an epoch each, in turns, and print seconds, ratios and losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="fashion-mnist", help="the data set, with its network")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images", type=int, help="take the first of a shuffled training set; by default all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of weights and order, the same in every repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true", help="fusedopt and bound with channels-last weights")
    parser.add_argument("--no-onednn", action="store_true", help="fusedopt and bound without oneDNN")
    parser.add_argument("--amp", choices=DTYPES, help="fusedopt and bound in mixed precision")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    task = TASKS[options.task]
    data = task.load(options.data_dir, print)
    chosen = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(0))[: options.images]
    data = replace(data, train_images=data.train_images[chosen], train_labels=data.train_labels[chosen])

    settings = Settings(amp=options.amp, channels_last=options.channels_last, onednn=not options.no_onednn)
    loops = {"slides": slide, "fusedopt": partial(ours, settings=settings), "bound": partial(bound, settings=settings)}
    results: dict[str, list[Result]] = {name: [] for name in loops}
    others = OtherWork()
    for _ in range(options.repeats):
        for name, loop in loops.items():
            model = seeded(task.network, options.seed)
            torch.manual_seed(options.seed)  # of dropout
            results[name].append(loop(model, data, options.batch_size, options.seed))

    print(
        f"{data.name}: {type(model).__name__}, {len(chosen):,} images in batches of {options.batch_size}, "
        f"SGD with lr {LR} and momentum {MOMENTUM}, {options.repeats} repeat(s)"
        f"{', channels-last' * options.channels_last}{', without oneDNN' * options.no_onednn}"
        f"{f', {options.amp}' if options.amp else ''}"
    )
    print(f"{machine_line()}; other processes kept {others.cores():.1f} core(s) busy")
    print(f"{'':<10}{'s per epoch':>12}{'slides / it':>13}{'quartiles':>16}{'epoch loss':>12}{'test loss':>11}")
    samples = {name: Sample(1, [result.seconds for result in group]) for name, group in results.items()}
    for name, sample in samples.items():
        ratio = sample.relative_to(samples["slides"])
        line = f"{name:<10}{sorted(sample.seconds)[len(sample.seconds) // 2]:12.2f}{ratio.median:12.2f}x"
        line += f"{f'{ratio.low:.2f} to {ratio.high:.2f}':>16}"
        if name != "bound":
            last = results[name][-1]
            line += f"{last.loss:12.5f}{final_loss(last.model, data):11.5f}"
        print(line)


if __name__ == "__main__":
    main()
