"""Labelled image files of any shape -> arrays of one size. What cannot be read is skipped, and named."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.errors import DataError

STORED_SIZE = 64  # pixels, unless a caller wants another
TEST_PARTS = ("test", "val", "valid", "validation")  # how sources call their test part; the first of them is taken
TEST_FRACTION = 0.2  # of each class, where a source has no test part
NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # stubs, films, and what another program is run for


class Sample(NamedTuple):
    name: str
    label: int
    image: bytes | Image.Image  # a file, or what a library made of one


@dataclass(frozen=True)
class Part:
    """One part of a dataset, of the images that could be read."""

    images: np.ndarray  # uint8 [N, S, S, 3]
    labels: np.ndarray  # int64 [N]
    skipped: tuple[str, ...]  # names of the others
    sha256: str  # of all files, the broken ones too


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """What Pillow may take a file for: by its contents, whatever its name says."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in NO_PICTURES)


def open_picture(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file), formats=picture_formats())


def stored_size(used: int) -> int:
    """The side to read images at that are looked at with a side of `used` pixels: smaller ones are made of these."""
    return max(used, STORED_SIZE)


def read_part(get: Callable[[int], Sample], count: int, size: int, max_images: int | None, seed: int = 0) -> Part:
    """Read the samples 0 .. `count` - 1, or `max_images` of them at random, each cut to its centre square and resized.

    `get` may raise for a sample that is broken; it is then called by its number.
    """
    index = np.arange(count)
    if max_images is not None and count > max_images:
        index = np.sort(np.random.default_rng(seed).choice(index, max_images, replace=False))
    images, labels = np.empty((len(index), size, size, 3), np.uint8), np.empty(len(index), np.int64)
    digest, skipped, kept = hashlib.sha256(), [], 0
    for i in index.tolist():
        name = f"image {i}"
        try:
            name, label, image = get(i)
            digest.update(f"{name}\0{label}\0".encode())
            digest.update(image if isinstance(image, bytes) else image.tobytes())
            images[kept] = _square(image, size)
        except _UnknownRange as e:
            skipped.append(f"{name} ({e})")
            continue
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # as Pillow says of broken files
            skipped.append(name)
            continue
        labels[kept] = label
        kept += 1
    return Part(images[:kept], labels[:kept], tuple(skipped), digest.hexdigest())


def _square(image: bytes | Image.Image, size: int) -> np.ndarray:
    if isinstance(image, bytes):
        image = open_picture(image)
        image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at about this size
    image = _to_rgb(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


class _UnknownRange(Exception):
    """An image of numbers of which nothing says what is black and what is white."""


def _to_rgb(image: Image.Image) -> Image.Image:
    """16 bits a pixel are scaled to 8, and what is transparent lies on white; Pillow's own conversion makes the ones
    white, and of the others it keeps what no viewer shows.

    Raises:
        _UnknownRange: whole numbers of 32 bits, or fractions.
    """
    # Older versions of Pillow open a PNG of 16 bits as whole numbers of 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise _UnknownRange(f"its mode is {image.mode}, expected 8 or 16 bits a channel")
    if "a" in image.mode.lower() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def assemble(
    name: str, train: Part, test: Part | None, class_names: Sequence[str], origin: str, licence: str = "unknown"
) -> ImageDataset:
    """A dataset of its parts; without a test part, a fifth of each class is set aside, the same at every call.

    Raises:
        DataError: no image could be read.
    """
    parts = [part for part in (train, test) if part is not None]
    skipped = tuple(s for part in parts for s in part.skipped)
    if not len(train.images):
        broken = f"all {len(skipped)} are unreadable, the first {skipped[0]}" if skipped else "there is none"
        raise DataError(f"Dataset {name!r} has no training image: {broken}.")
    if test is None:
        train, test = split_by_class(train)
    return ImageDataset(
        name=name,
        x_train=train.images,
        y_train=train.labels,
        x_test=test.images,
        y_test=test.labels,
        class_names=tuple(class_names),
        origin=origin,
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        licence=licence,
        skipped=skipped,
    )


def split_by_class(part: Part, test_fraction: float = TEST_FRACTION, seed: int = 0) -> tuple[Part, Part]:
    """Train and test part, `test_fraction` of each class in the latter."""
    is_test = np.zeros(len(part.labels), bool)
    rng = np.random.default_rng(seed)
    for c in np.unique(part.labels):
        members = rng.permutation(np.flatnonzero(part.labels == c))
        is_test[members[: int(len(members) * test_fraction)]] = True
    train, test = (Part(part.images[keep], part.labels[keep], (), part.sha256) for keep in (~is_test, is_test))
    return train, test
