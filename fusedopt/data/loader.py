"""Batches for training: from a set that sits on the device, or from workers that read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fusedopt.data.augmentations import Augmentation
from fusedopt.data.images import Normalize

_WHITE = 255
_PART_BYTES = 2**20  # of images gathered at once; as float32 they still stay in a processor's cache


class BatchTransform:
    """Turns uint8 images into what a network takes: augmented, then standardized.

    Args:
        normalize: with the statistics of the training images.
        augmentation: None changes nothing.
    """

    def __init__(self, normalize: Normalize, augmentation: Augmentation | None = None) -> None:
        self.normalize, self.augmentation = normalize, augmentation

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns images float32 [B, C, H', W'] and targets, see `Augmentation`, for uint8 [B, C, H, W], int64 [B]."""
        if self.augmentation is None:
            return self.normalize(images), labels
        changed, targets = self.augmentation(images.float().div_(_WHITE), labels, generator)
        return self.normalize(changed.mul(_WHITE)), targets


class BatchLoader:
    """Batches on a device, each one transformed there.

    A set that fits is copied to the device once, as bytes, and gathered there in parts of many batches: a batch is then
    a slice, and nothing waits for the host. Any other is read by a `DataLoader`, whose workers only decode. Both give
    the same batches.

        loader = BatchLoader((data.train_images, data.train_labels), 64, transform, device="cuda")
        for images, targets in loader.batches(torch.randperm(len(data.train_labels)), seed=0):
            ...

    Args:
        dataset: (uint8 [N, C, H, W], int64 [N]), or a map-style dataset of such images and labels one by one.
        batch_size: images per batch, the last one smaller where the number does not divide.
        transform: augments and standardizes a batch; its statistics are moved to the device.
        device: where the batches come.
        resident_bytes: sets of tensors up to this size sit on the device.
        workers: processes that read any other set; 0 reads in this one.

    Attributes:
        resident: whether the set sits on the device.

    Raises:
        ValueError: the images are not uint8, the labels are not as many, or the batch size is below 1.
    """

    def __init__(
        self,
        dataset: tuple[Tensor, Tensor] | Dataset[tuple[Tensor, Tensor]],
        batch_size: int,
        transform: BatchTransform,
        *,
        device: torch.device | str = "cpu",
        resident_bytes: int = 2**30,
        workers: int = 2,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, not {batch_size}")
        self.device, self.batch_size, self.workers = torch.device(device), batch_size, workers
        self.transform = transform
        self.resident = False
        if isinstance(dataset, tuple):
            images, labels = dataset
            if images.dtype != torch.uint8 or images.dim() != 4 or labels.shape != images.shape[:1]:
                found = f"{images.dtype} {list(images.shape)} and {list(labels.shape)}"
                raise ValueError(f"the set must be uint8 [N, C, H, W] images and as many labels [N], not {found}")
            self.resident = images.numel() <= resident_bytes
            if self.resident:
                images, labels = images.to(self.device), labels.to(self.device)
            self._images, self._labels = images, labels
            self._dataset: Dataset[Any] = TensorDataset(images, labels)
        else:
            self._dataset = dataset
        transform.normalize.to(self.device)

    def batches(
        self, order: Tensor, seed: int = 0, sizes: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the images of one pass, in an order, as batches of images float32 [B, C, H', W'] and targets.

        Args:
            order: int64, indices into the set.
            seed: of the augmentations. The same order and seed give the same batches, whatever came before.
            sizes: how many images each batch has, all of `order` together; None is the loader's batch size, and for
                the last batch what is left.
        """
        sizes = [len(part) for part in torch.split(order, self.batch_size)] if sizes is None else list(sizes)
        generator = torch.Generator(self.device).manual_seed(seed)
        if not self.resident:
            for images, labels in self._read(order, seed, sizes):
                yield self.transform(images, labels, generator)
            return
        plain = self.transform.augmentation is None  # changes each pixel alone, so that a part can be done in one go
        several = max(_PART_BYTES // (self._images.shape[1:].numel() * self.batch_size), 1)
        parts = [sizes[start : start + several] for start in range(0, len(sizes), several)]
        for index, part in zip(torch.split(order.to(self.device), list(map(sum, parts))), parts, strict=True):
            images, labels = self._images[index], self._labels[index]
            if plain:
                images, labels = self.transform(images, labels, generator)
            for batch in zip(torch.split(images, part), torch.split(labels, part), strict=True):
                yield batch if plain else self.transform(*batch, generator)

    def _read(self, order: Tensor, seed: int, sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=[part.tolist() for part in torch.split(order, sizes)],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # of the workers' seeds; the global one stays as it is
        )
        for images, labels in loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
