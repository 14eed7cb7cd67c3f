"""A task's images: resized, a subset of classes, seen through a domain. Decoded once and shared by all workers."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.domains import apply_domain
from zoo_builder.files import temporary_name
from zoo_builder.tasks import FineTuneTask

MAX_IMAGES = 4000  # of each part of a dataset in a task's memory, at most
PARTS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class DomainImages:
    """One dataset as one domain sees it, at the size of the model."""

    x_train: torch.Tensor  # uint8 [N, 3, S, S]
    y_train: torch.Tensor  # int64 [N]
    x_test: torch.Tensor  # uint8 [M, 3, S, S]
    y_test: torch.Tensor  # int64 [M]
    num_classes: int

    @functools.cached_property
    def members(self) -> list[np.ndarray]:
        """The train images of each class that has any, by index."""
        y = self.y_train.numpy()
        return [np.flatnonzero(y == c) for c in np.unique(y)]

    def to(self, device: torch.device) -> DomainImages:
        """The same with the images on `device`; labels stay where batches are drawn."""
        return replace(self, x_train=self.x_train.to(device), x_test=self.x_test.to(device))


@dataclass(frozen=True)
class SharedImages:
    """Datasets at one size, each kept as plain arrays in `folder`: read once, then mapped by every process."""

    folder: Path
    size: int
    load: Callable[[str], ImageDataset]

    def read(self, name: str) -> tuple[np.ndarray, ...]:
        """x_train uint8 [N, 3, S, S], y_train int64 [N], x_test, y_test; not to be written to."""
        place = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{self.size}"
        if not place.exists():
            dataset = self.load(name)
            temporary = temporary_name(place)
            temporary.mkdir(parents=True)
            for part in PARTS:
                array = getattr(dataset, part)
                np.save(temporary / f"{part}.npy", array if part[0] == "y" else resize_images(array, self.size).numpy())
            try:
                temporary.rename(place)
            except OSError:  # another worker was first
                shutil.rmtree(temporary)
        return tuple(np.load(place / f"{part}.npy", mmap_mode="r") for part in PARTS)

    def view(self, name: str, domain: str, task: FineTuneTask, test: bool = True) -> DomainImages:
        """At most MAX_IMAGES of each part, of the task's classes, through `domain`; the test part only with `test`."""
        x_train, y_train, x_test, y_test = self.read(name)
        total = int(max(y_train.max(), y_test.max(initial=0))) + 1
        classes = np.arange(total)
        if task.class_subset is not None and total > task.class_subset:
            classes = np.unique(y_train)  # for some numbers may have no image
            if len(classes) > task.class_subset:
                rng = np.random.default_rng(stable_seed(task.seed, name, domain))
                classes = np.sort(rng.choice(classes, task.class_subset, replace=False))
        renumber = np.full(total, -1)
        renumber[classes] = np.arange(len(classes))
        parts = []
        for x, y in ((x_train, y_train), (x_test, y_test)):
            keep = np.flatnonzero(renumber[y] >= 0)
            if x is x_test and not test:
                keep = keep[:0]
            if len(keep) > MAX_IMAGES:
                keep = np.random.default_rng(stable_seed(task.seed, name)).choice(keep, MAX_IMAGES, replace=False)
            keep.sort()  # a mapped file is read in order
            images = apply_domain(torch.from_numpy(x[keep]), domain, stable_seed(task.seed, domain))
            parts += [images, torch.from_numpy(renumber[y[keep]])]
        return DomainImages(parts[0], parts[1], parts[2], parts[3], len(classes))


def stable_seed(*parts: object) -> int:
    """A 31-bit seed from any values, the same in every process (Python's hash() is not)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1


def sample_images(images: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` images without replacement, with their indices."""
    index = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[index], index
