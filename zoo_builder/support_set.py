"""The few hundred training images that everything is computed from, read from a loader without leaving a trace."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.loader import MultiEpochsDataLoader
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from zoo_builder.errors import DataError
from zoo_builder.first_batches import Drawn, FirstBatches
from zoo_builder.random_state import unchanged_random_state


@dataclass(frozen=True)
class SupportSet:
    images: torch.Tensor  # float [N, C, H, W], as the model takes them
    labels: torch.Tensor  # int64 [N], 0 .. num_classes - 1
    num_classes: int
    notes: tuple[str, ...] = ()  # what the user should know of how they were read
    batch: int = 0  # images of the largest batch that was read: so many at once the user's training will see

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes_seen(self) -> int:
        return int(self.labels.unique().numel())


def read_support_set(loader: Iterable[Any], num_support: int, num_classes: int, seed: int = 0) -> SupportSet:
    """Read at most `num_support` images from a loader of (images, labels) batches, or mappings of them.

    Batches are read whole and in the loader's order; but a DataLoader that goes through more images than these without
    shuffling is read in an order of `seed`, since sorted classes would not all be seen. An image that comes again (a
    sampler with replacement, a loader without end) counts once: left out of a head, it would be known to it by its
    copy. Those of a DataLoader are told by their index, inside of Subset and ConcatDataset too, whatever augmentation
    makes of them, but where a collate_fn of one's own gives another number of images than it got; others by every bit
    and their label. Of several views of each image, as timm's AugMix makes them (a batch is a block of all its images,
    and then another), the first counts. `num_support` is of images that come, so that this ends. Soft targets [N,
    num_classes] count by their largest. The global random states and those of the loader's and its sampler's generators
    are put back afterwards; what is read from an iterator is gone from it.

    Raises:
        DataError: no batch, batches of another form, labels out of range, fewer than two classes, or NaN pixels.
    """
    if num_support < 2:
        raise DataError(f"num_support must be 2 or more, to see two classes; got {num_support}.")
    _check_is_loader(loader)
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    notes: list[str] = []
    drawn = Drawn()
    largest = 0
    with unchanged_random_state(loader):
        missing = num_support
        for batch in _of_the_first(loader, num_support, seed, notes, drawn):
            x, y = images_and_labels(batch, num_classes, notes)
            largest = max(largest, len(x))
            x, y = drawn.new_of(x, y, notes)
            # As models compute, so that nobody copies all of them again.
            kept = x[:missing].detach().cpu().contiguous(memory_format=torch.channels_last)
            # Copied once: a loader may fill a batch's memory anew, and that of a worker's batch is a file held open.
            images.append(kept.clone() if x.is_cpu and kept.data_ptr() == x.data_ptr() else kept)
            labels.append(y[:missing].detach().to("cpu", torch.long, copy=True))
            missing -= len(images[-1])
            if missing <= 0:
                break
    if not images or not sum(map(len, images)):
        raise DataError(
            "The loader gave no images. Expected batches of (images [N, C, H, W], labels [N]); with drop_last=True a "
            "dataset smaller than a batch gives none, and an iterator that was read before gives nothing more."
        )
    shapes = {tuple(x.shape[1:]) for x in images}
    if len(shapes) > 1:
        raise DataError(f"All batches must have images of one shape, got {sorted(shapes)}. Resize them alike.")
    x, y = torch.cat(images), torch.cat(labels)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        shift = (
            f" Labels that begin at {low} are renumbered by target_transform=lambda y: y - {low}." if low > 0 else ""
        )
        raise DataError(
            f"Labels must lie in 0..{num_classes - 1} for a model of {num_classes} classes; got {low}..{high}. "
            f"Create the model with the right num_classes, or renumber the labels.{shift}"
        )
    if y.unique().numel() < 2:
        raise DataError(
            f"All {len(y)} images read have the label {low}; at least two classes are needed. Shuffle the loader."
        )
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x).flatten(1).all(1)).sum())
        raise DataError(f"{bad} of {len(x)} images hold NaN or infinite pixels. Check the files and the transform.")
    x = x.float()
    once = _first_of_equals(x, y)
    repeated = drawn.repeated + len(y) - len(once)
    if len(once) < len(y):
        x, y = x[once].contiguous(memory_format=torch.channels_last), y[once]
    if repeated:
        notes.append(f"{repeated} images came again after they were read, and count once")
    return SupportSet(x, y, num_classes, tuple(dict.fromkeys(notes)), largest)


def _check_is_loader(loader: Any) -> None:
    came = type(loader).__name__
    if isinstance(loader, Mapping):
        came = f"a dict with the keys {sorted(map(str, loader))}"
        advice = "Pass one of its loaders, as loaders['train'], or a single batch as [batch]."
    elif hasattr(loader, "__iter__") or hasattr(loader, "__getitem__"):
        return
    else:
        advice = "Call it, and pass what it gives." if callable(loader) else "Pass the DataLoader of the training."
    raise DataError(f"Expected a loader, which gives batches of (images, labels) one by one; got {came}. {advice}")


def _first_of_equals(images: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Indices of the images that are not, bit for bit and with their label, equal to one before."""
    first: dict[tuple[bytes, int], int] = {}
    for i, (image, label) in enumerate(zip(images.permute(0, 2, 3, 1), labels.tolist(), strict=True)):
        first.setdefault((hashlib.blake2b(image.numpy().tobytes()).digest(), label), i)
    return list(first.values())


def _of_the_first(loader: Iterable[Any], count: int, seed: int, notes: list[str], drawn: Drawn) -> Iterable[Any]:
    """`loader`, or a copy of a DataLoader (timm's, and one in its PrefetchLoader, too) that fetches no batch behind the
    first `count` images, whatever its workers fetch ahead, nor one of images that came before (see FirstBatches), and
    has no part in the state of the user's own."""
    inner = getattr(loader, "loader", None)
    if isinstance(inner, DataLoader) and type(loader).__module__.startswith("timm."):
        prefetch: Any = copy.copy(loader)
        prefetch.loader = _of_the_first(inner, count, seed, notes, drawn)
        return prefetch
    if isinstance(loader, MultiEpochsDataLoader) and loader.batch_sampler is not None:
        loader = _changed(loader, batch_sampler=loader.batch_sampler.sampler)  # type: ignore[attr-defined]  # one epoch
        loader.__class__ = DataLoader
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        if isinstance(loader, Iterator):
            notes.append("the loader is an iterator: the batches that were read are gone from it")
        return loader
    batches = loader.batch_sampler
    if batches is None or isinstance(loader.dataset, IterableDataset):
        # The reading ends it, with a batch a worker fetched ahead. To ask for no more batches than are wanted is no
        # way: those that a worker is asked for after its part of a stream has ended never come.
        return _changed(loader, prefetch_factor=1)
    if type(batches) is BatchSampler and type(batches.sampler) is SequentialSampler and len(batches.sampler) > count:
        notes.append("the loader does not shuffle: images were drawn at random from its dataset")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(batches.sampler), generator=generator, device="cpu").tolist()
        batches = BatchSampler(order, batches.batch_size, batches.drop_last)
    # In their order, in which it is noted what was drawn.
    return _changed(loader, batch_sampler=FirstBatches(batches, count, loader, drawn), in_order=True)


def _changed(loader: DataLoader, **changes: Any) -> DataLoader:
    """A copy that shares no worker with `loader`; a DataLoader takes no changes by its own means."""
    loader = copy.copy(loader)
    vars(loader).update(changes, _iterator=None)
    return loader


IMAGE_KEYS = ("pixel_values", "image", "images", "img")
LABEL_KEYS = ("labels", "label", "targets", "target", "fine_label")


def images_and_labels(batch: Any, num_classes: int, notes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float [N, C, H, W] and labels int [N] of a batch, whatever its form."""
    advice = "Wrap a dataset in a DataLoader; give one of Hugging Face .with_format('torch') or a transform to tensors."
    if isinstance(batch, Mapping):
        x = next((batch[k] for k in IMAGE_KEYS if k in batch), None)
        y = next((batch[k] for k in LABEL_KEYS if k in batch), None)
        came = f"a dict with the keys {sorted(map(str, batch))}"
        if x is None or y is None:
            advice = f"Name the images {' or '.join(IMAGE_KEYS)}, and the labels {' or '.join(LABEL_KEYS)}."
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        x, y = batch[0], batch[1]
        came = f"({type(x).__name__}, {type(y).__name__})"
    else:
        x = y = None
        came = type(batch).__name__
    if isinstance(y, str) or (isinstance(y, list | tuple) and any(isinstance(label, str) for label in y)):
        raise DataError(
            f"Labels must be integers, got names such as {y if isinstance(y, str) else y[0]!r}. Number them: names = "
            "sorted(set(all_labels)), then names.index(label) for each image."
        )
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        raise DataError(
            "Each batch must be a tensor of images and a tensor of labels, as a pair or in a dict; "
            f"got {came}. {advice}"
        )
    if x.ndim == 3 and y.ndim == 0:
        raise DataError(
            f"Images must be a float tensor [N, C, H, W], got a single one, {x.dtype} {list(x.shape)}. Wrap the "
            "dataset: DataLoader(dataset, batch_size=64, shuffle=True)."
        )
    if x.ndim != 4 or not x.is_floating_point():
        raise DataError(
            f"Images must be a float tensor [N, C, H, W], got {x.dtype} {list(x.shape)}. "
            "Let the loader apply ToTensor and Normalize, as for training."
        )
    if y.ndim == 2 and y.shape[1] == 1:
        if y.is_floating_point():
            raise DataError(
                f"Targets {y.dtype} {list(y.shape)} are a single number an image, as for a regression or one sigmoid. "
                f"Labels must be one integer an image, [{len(x)}]: 0 and 1 of two classes, for a model of two outputs."
            )
        y = y[:, 0]
    if y.ndim == 2 and len(y) == len(x) and len(y):
        return x, _hard_labels(y, num_classes, notes)
    if y.ndim != 1 or y.is_floating_point() or len(x) != len(y):
        raise DataError(
            f"Labels must be one integer an image, [{len(x)}], or soft targets [{len(x)}, {num_classes}] as Mixup "
            f"makes them; got {y.dtype} {list(y.shape)}."
        )
    return x, y


def _hard_labels(targets: torch.Tensor, num_classes: int, notes: list[str]) -> torch.Tensor:
    """[N, K] shares of classes that sum to one -> the class with the largest."""
    shares = targets.to_dense().float()
    if targets.shape[1] != num_classes:
        raise DataError(f"Soft targets are [N, {targets.shape[1]}] and the model has {num_classes} classes.")
    if bool((shares < 0).any()) or not torch.allclose(shares.sum(1), shares.new_ones(len(shares)), atol=1e-2):
        raise DataError(
            "Targets [N, K] must be shares of classes that sum to 1, as Mixup or one-hot coding makes them; these do "
            "not. Several labels an image (multi-label) are not supported: the head is solved for one class an image."
        )
    if bool(((shares > 0) & (shares < 1)).any()):
        notes.append("targets are soft: the class with the largest share counts")
    return shares.argmax(1)
