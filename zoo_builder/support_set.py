"""The few hundred training images that everything is computed from, read from a loader without leaving a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from zoo_builder.errors import DataError


@dataclass(frozen=True)
class SupportSet:
    images: torch.Tensor  # float [N, C, H, W], as the model takes them
    labels: torch.Tensor  # int64 [N], 0 .. num_classes - 1
    num_classes: int
    notes: tuple[str, ...] = ()  # what the user should know of how they were read

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes_seen(self) -> int:
        return int(self.labels.unique().numel())


def read_support_set(loader: Iterable[Any], num_support: int, num_classes: int, seed: int = 0) -> SupportSet:
    """Read at most `num_support` images from a loader of (images, labels) batches, or dicts of them.

    The global random states and those of the loader's and its sampler's generators are put back afterwards.

    Raises:
        DataError: no batch, batches of another form, labels out of range, fewer than two classes, or NaN pixels.
    """
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    if isinstance(loader, DataLoader) and loader.persistent_workers:
        loader = copy.copy(loader)
        vars(loader)["_iterator"] = None  # the user's own workers stay as they are, or unborn
    with unchanged_random_state(loader):
        missing = num_support
        for batch in loader:
            x, y = _images_and_labels(batch)
            images.append(x[:missing].detach().cpu())
            labels.append(y[:missing].detach().cpu().long())
            missing -= len(images[-1])
            if missing <= 0:
                break
    if not images or not sum(map(len, images)):
        raise DataError("The loader gave no images. Expected batches of (images [N, C, H, W], labels [N]).")
    shapes = {tuple(x.shape[1:]) for x in images}
    if len(shapes) > 1:
        raise DataError(f"All batches must have images of one shape, got {sorted(shapes)}. Resize them alike.")
    x, y = torch.cat(images), torch.cat(labels)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"Labels must lie in 0..{num_classes - 1} for a model of {num_classes} classes; got {low}..{high}. "
            "Create the model with the right num_classes, or renumber the labels."
        )
    if y.unique().numel() < 2:
        raise DataError(
            f"All {len(y)} images read have the label {low}; at least two classes are needed. Shuffle the loader."
        )
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x).flatten(1).all(1)).sum())
        raise DataError(f"{bad} of {len(x)} images hold NaN or infinite pixels. Check the files and the transform.")
    return SupportSet(x.float(), y, num_classes)


def _images_and_labels(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(batch, dict):
        x = next((batch[k] for k in ("pixel_values", "image", "images", "img") if k in batch), None)
        y = next((batch[k] for k in ("labels", "label", "targets", "target") if k in batch), None)
        came = f"a dict with the keys {sorted(map(str, batch))}"
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        x, y = batch[0], batch[1]
        came = f"({type(x).__name__}, {type(y).__name__})"
    else:
        x = y = None
        came = type(batch).__name__
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        raise DataError(
            f"Each batch must be a tensor of images and a tensor of labels, as a pair or in a dict; got {came}."
        )
    if x.ndim != 4 or not x.is_floating_point():
        raise DataError(
            f"Images must be a float tensor [N, C, H, W], got {x.dtype} {list(x.shape)}. "
            "Let the loader apply ToTensor and Normalize, as for training."
        )
    if y.ndim != 1 or y.is_floating_point() or len(x) != len(y):
        raise DataError(
            f"Labels must be one integer an image, [{len(x)}]; got {y.dtype} {list(y.shape)}. "
            "Pass a loader without Mixup or soft targets."
        )
    return x, y


@contextmanager
def unchanged_random_state(*owners: object) -> Iterator[None]:
    """Put back the global states of Python, NumPy and torch, and any torch.Generator found on `owners`."""
    python, numpy_, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    parts = [p for o in owners for p in (o, getattr(o, "sampler", None), getattr(o, "batch_sampler", None))]
    parts += [getattr(p, "sampler", None) for p in parts]  # a batch sampler has one too
    found = {id(g): g for p in parts if isinstance(g := getattr(p, "generator", None), torch.Generator)}
    states = {key: g.get_state() for key, g in found.items()}
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        torch.set_rng_state(torch_)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for key, g in found.items():
            g.set_state(states[key])
