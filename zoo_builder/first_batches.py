"""The first batches that a sampler draws, each image once: what they are, and what of each batch is new."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
from timm.data.loader import fast_collate
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate

# They take a batch of any length: an image that comes again need not be fetched for them. Another collate_fn gets its
# batches as in training: timm's Mixup wants an even number, what goes with a sampler of P x K images as many.
TAKE_ANY_LENGTH = (default_collate, fast_collate)


class Drawn:
    """What was drawn from a DataLoader's sampler: of each batch that is fetched which of its images had come before,
    and how often any had."""

    def __init__(self) -> None:
        self.repeated = 0
        self.fetched: deque[list[bool]] = deque()
        self.views_in_blocks = False  # which timm makes of them, and others' are told by their labels

    def new_of(self, images: torch.Tensor, labels: torch.Tensor, notes: list[str]) -> tuple[Any, Any]:
        """What has not come before of the next batch that was fetched. Of several views of its images the first."""
        before = self.fetched.popleft() if self.fetched else []
        if before and len(images) > len(before) and self._are_views(labels, len(before)):
            notes.append(f"of {len(images) // len(before)} views of each image the first alone counts")
            images, labels = images[: len(before)], labels[: len(before)]
        if any(before) and len(before) == len(images):  # else which they are is not known
            new = [i for i, came in enumerate(before) if not came]
            images, labels = images[new], labels[new]
        return images, labels

    def _are_views(self, labels: torch.Tensor, count: int) -> bool:
        """Whether a batch is blocks of `count` images with the same labels."""
        if len(labels) % count:
            return False
        blocks = labels.reshape(-1, count)
        # Of one class, or one image, they may be anything: a class's images, or a batch that is an item.
        return bool((blocks == blocks[0]).all()) and (self.views_in_blocks or bool((blocks != blocks[0, 0]).any()))


class FirstBatches:
    """The `batches` of a sampler of `loader` that hold the first `count` indices, without those whose images came
    before, or whole where its collate_fn is not known to take any length."""

    def __init__(self, batches: Iterable[Any], count: int, loader: DataLoader, drawn: Drawn) -> None:
        self._batches, self._count, self._dataset, self._drawn = batches, count, loader.dataset, drawn
        self._whole = loader.collate_fn not in TAKE_ANY_LENGTH
        drawn.views_in_blocks = loader.collate_fn is fast_collate

    def __iter__(self) -> Iterator[Any]:
        missing, known = self._count, set[Any]()
        for batch in self._batches:
            missing -= len(batch)
            before = [_comes_again(_image_of(self._dataset, index), known) for index in batch]
            self._drawn.repeated += sum(before)
            if not all(before):
                if any(before) and not self._whole:
                    batch = [i for i, came in zip(batch, before, strict=True) if not came]
                    before = [False] * len(batch)
                self._drawn.fetched.append(before)
                yield batch
            if missing <= 0:
                return


def _comes_again(image: Hashable, known: set[Any]) -> bool:
    """Whether an image is among the `known`, which it then is."""
    try:
        repeated = image in known
        known.add(image)
    except TypeError:  # a list, say: whether its images are equal is seen when they are there
        return False
    return repeated


def _image_of(dataset: Any, index: Any) -> Hashable:
    """What tells an image however often a dataset holds it: the dataset in which it lies, inside of Subset and
    ConcatDataset, and its index there."""
    outer = id(dataset), index
    try:
        while True:
            with suppress(TypeError):  # a name, say
                index = operator.index(index)  # tensors of the same number are not equal in a set
            if isinstance(dataset, Subset):
                dataset, index = dataset.dataset, dataset.indices[index]
            elif isinstance(dataset, ConcatDataset):
                index += len(dataset) if index < 0 else 0
                part = bisect_right(dataset.cumulative_sizes, index)
                dataset, index = dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0)
            else:
                return id(dataset), index
    except (TypeError, LookupError):  # a subclass whose indices are something else
        return outer
