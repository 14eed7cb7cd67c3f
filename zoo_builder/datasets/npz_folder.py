"""One .npz file a dataset: x_train, y_train, x_test, y_test, class_names; images raw or as one blob of JPEG files."""

from __future__ import annotations

import hashlib
import itertools
import zipfile
import zlib
from pathlib import Path

import numpy as np

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.datasets.read_images import open_picture
from zoo_builder.errors import DataError

MOST_CLASSES = 1_000_000  # a larger label is no number of a class, and as many names would fill the memory
# As numpy and zipfile say of broken archives; the last two of encrypted ones and of headers that promise too much.
BROKEN = (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError)


def load_npz(path: Path) -> ImageDataset:
    """Read one file. Images are `x_train` (uint8 [N,H,W] or [N,H,W,3]), or `x_train_jpeg` with `x_train_off` [N+1].

    Raises:
        DataError: not an npz file, keys missing, labels that are no numbers of classes, or images that cannot be
            decoded.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except BROKEN as e:
        raise DataError(f"{path} is not a readable .npz file without pickled objects ({e}).") from e
    missing = {"y_train", "y_test"} - arrays.keys()
    if missing:
        raise DataError(f"{path}: expected the keys y_train and y_test, missing {sorted(missing)}.")
    if not arrays.get("class_names", np.zeros(1)).ndim:
        raise DataError(f"{path}: class_names must be a list [K] of names, got {arrays['class_names']!s:.80}.")
    (x_train, y_train, broken), (x_test, y_test, more) = (_part(arrays, part, path) for part in ("train", "test"))
    classes = int(max(arrays[k].max(initial=0) for k in ("y_train", "y_test"))) + 1
    return ImageDataset(
        name=path.stem,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=tuple(str(c) for c in arrays.get("class_names", range(classes))),
        origin=str(arrays.get("origin", path.name)),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence=str(arrays.get("licence", "unknown")),
        skipped=(*broken, *more),
    )


def _part(arrays: dict[str, np.ndarray], part: str, path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images, labels, and the names of images that cannot be decoded, which are in neither."""
    labels = _labels(arrays, part, path)
    if f"x_{part}" in arrays:
        images = arrays[f"x_{part}"]
        return np.repeat(images[..., None], 3, axis=-1) if images.ndim == 3 else images, labels, []
    if f"x_{part}_jpeg" in arrays and f"x_{part}_off" in arrays:
        offsets = arrays[f"x_{part}_off"]
        if offsets.dtype.kind not in "iu" or offsets.ndim != 1:
            came = f"{offsets.dtype} {list(offsets.shape)}"
            raise DataError(f"{path}: x_{part}_off must be whole numbers [N+1], got {came}.")
        images, broken = _decode_jpegs(arrays[f"x_{part}_jpeg"].tobytes(), offsets, path)
        if len(images) + len(broken) != len(labels):
            raise DataError(f"{path}: {len(images) + len(broken)} {part} images but {len(labels)} labels.")
        return images, np.delete(labels, broken), [f"{part} image {i}" for i in broken]
    raise DataError(f"{path}: expected x_{part}, or x_{part}_jpeg with x_{part}_off.")


def _labels(arrays: dict[str, np.ndarray], part: str, path: Path) -> np.ndarray:
    labels = arrays[f"y_{part}"]
    if labels.dtype.kind not in "iufb":
        raise DataError(f"{path}: y_{part} must be numbers of classes, got {labels.dtype}. Put names in class_names.")
    labels = labels.reshape(-1)
    wrong = labels[
        ~((labels == np.floor(labels)) & (labels < MOST_CLASSES))
    ]  # no comparison holds of what is no number
    if len(wrong):
        raise DataError(
            f"{path}: y_{part} must be whole numbers of classes below {MOST_CLASSES}, got {wrong[0]}. Number the "
            "classes from 0, and leave out images without a label."
        )
    return labels.astype(np.int64)


def _decode_jpegs(blob: bytes, offsets: np.ndarray, path: Path) -> tuple[np.ndarray, list[int]]:
    """Images [N, H, W, 3], and the places of those that cannot be decoded."""
    from PIL import Image

    images, broken = [], []
    for i, (start, end) in enumerate(itertools.pairwise(offsets)):
        try:
            images.append(np.asarray(open_picture(blob[start:end]).convert("RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken.append(i)
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(f"{path}: all images must have one size, got {shapes[:4]}. Resize them alike.")
    if broken and not images:
        raise DataError(f"{path}: none of its {len(broken)} JPEG files can be read.")
    return np.stack(images) if images else np.empty((0, 1, 1, 3), np.uint8), broken
