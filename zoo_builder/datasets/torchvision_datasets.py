"""A classification dataset of torchvision, by the name of its class: from disk, or fetched where that is asked for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.datasets.read_images import TEST_PARTS, Part, Sample, assemble, read_part
from zoo_builder.errors import DataError, nearest_names
from zoo_builder.recipe import toml_value

TRAIN_SPLITS = ("trainval", "train", "train-standard")


def load_torchvision(
    name: str, arguments: dict[str, str], root: Path, size: int, max_images: int | None, download: bool
) -> ImageDataset:
    """`torchvision.datasets.NAME(root, **arguments)` in its train (or trainval) and test (or val) parts; one without
    parts is split. Arguments are numbers and the like where they are TOML, else text.

    Raises:
        DataError: no such dataset, it is not there, does not take its arguments, or its items are not images with a
            label.
    """
    from torchvision import datasets

    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        raise DataError(f"torchvision has no dataset {name!r}; {nearest_names(name, datasets.__all__)}")
    parameters = {p for c in kind.__mro__[:-1] for p in inspect.signature(c.__init__).parameters}
    part = "train" if "train" in parameters else "split"
    ours = sorted({part, "root", "download", "transform", "target_transform"} & arguments.keys())
    if ours:
        raise DataError(f"torchvision:{name} is given {', '.join(ours)} by this library: leave that out.")
    options: dict[str, Any] = {argument: toml_value(value) for argument, value in arguments.items()}
    if download and "download" in parameters:
        options["download"] = True
    if "train" in parameters:
        parts = [_make(kind, root, train=flag, **options) for flag in (True, False)]
    elif "split" in parameters:
        parts = [_first_split(kind, root, splits, options) for splits in (TRAIN_SPLITS, TEST_PARTS)]
    else:
        parts = [_make(kind, root, **options)]
    read = [_read(name, part, size, max_images) for part in parts]
    named = getattr(parts[0], "classes", None) or getattr(parts[0], "categories", None)
    if named is None:
        named = range(1 + max((int(part.labels.max(initial=0)) for part in read), default=0))
    classes = [", ".join(c) if isinstance(c, tuple) else str(c) for c in named]
    test = read[1] if len(read) > 1 else None
    return assemble(f"torchvision:{name}", read[0], test, classes, f"torchvision.datasets.{name}")


class _ValueRefused(DataError):
    """torchvision takes the argument, and not this value of it."""


def _first_split(kind: Any, root: Path, splits: tuple[str, ...], options: dict[str, Any]) -> Any:
    refused = None
    for split in splits:
        try:
            return _make(kind, root, split=split, **options)
        except _ValueRefused as e:  # a split that a dataset has not; or another argument
            refused = e
    raise DataError(f"torchvision:{kind.__name__} has none of the splits {', '.join(splits)}. {refused}") from refused


def _make(kind: Any, root: Path, **options: Any) -> Any:
    try:
        return kind(root=str(root), **options)
    except (RuntimeError, OSError, ImportError) as e:
        raise DataError(
            f"torchvision:{kind.__name__} cannot be read in {root} ({e}). Put it there, or ask for a download "
            "(--download)."
        ) from e
    except ValueError as e:
        raise _ValueRefused(f"torchvision:{kind.__name__} cannot be made with {options} ({e}).") from e
    except TypeError as e:
        raise DataError(
            f"torchvision:{kind.__name__} cannot be made of a folder and {options} ({e}). Arguments are written behind "
            "its name, as in torchvision:EMNIST?split=balanced."
        ) from e


def _read(name: str, dataset: Any, size: int, max_images: int | None) -> Part:
    def get(i: int) -> Sample:
        image, label = dataset[i]
        if not isinstance(image, Image.Image) or not isinstance(label, int | np.integer):
            raise DataError(
                f"torchvision:{name} gives {type(image).__name__} with {type(label).__name__}; expected an image with "
                "the number of its class."
            )
        return Sample(f"{name} image {i}", int(label), image)

    return read_part(get, len(dataset), size, max_images)
