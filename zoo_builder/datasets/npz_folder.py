"""One .npz file a dataset: x_train, y_train, x_test, y_test, class_names; images raw or as one blob of JPEG files."""

from __future__ import annotations

import hashlib
import io
import itertools
import zipfile
import zlib
from pathlib import Path

import numpy as np

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.errors import DataError


def load_npz(path: Path) -> ImageDataset:
    """Read one file. Images are `x_train` (uint8 [N,H,W] or [N,H,W,3]), or `x_train_jpeg` with `x_train_off` [N+1].

    Raises:
        DataError: not an npz file, keys missing, or images that cannot be decoded.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{path} is not a readable .npz file without pickled objects ({e}).") from e
    missing = {"y_train", "y_test"} - arrays.keys()
    if missing:
        raise DataError(f"{path}: expected the keys y_train and y_test, missing {sorted(missing)}.")
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
    labels = arrays[f"y_{part}"]
    if labels.dtype.kind not in "iufb":
        raise DataError(f"{path}: y_{part} must be numbers of classes, got {labels.dtype}. Put names in class_names.")
    labels = labels.astype(np.int64).reshape(-1)
    if f"x_{part}" in arrays:
        images = arrays[f"x_{part}"]
        return np.repeat(images[..., None], 3, axis=-1) if images.ndim == 3 else images, labels, []
    if f"x_{part}_jpeg" in arrays and f"x_{part}_off" in arrays:
        if (offsets := arrays[f"x_{part}_off"]).dtype.kind not in "iu":
            raise DataError(f"{path}: x_{part}_off must be whole numbers [N+1], got {offsets.dtype}.")
        images, broken = _decode_jpegs(arrays[f"x_{part}_jpeg"].tobytes(), offsets, path)
        if len(images) + len(broken) != len(labels):
            raise DataError(f"{path}: {len(images) + len(broken)} {part} images but {len(labels)} labels.")
        return images, np.delete(labels, broken), [f"{part} image {i}" for i in broken]
    raise DataError(f"{path}: expected x_{part}, or x_{part}_jpeg with x_{part}_off.")


def _decode_jpegs(blob: bytes, offsets: np.ndarray, path: Path) -> tuple[np.ndarray, list[int]]:
    """Images [N, H, W, 3], and the places of those that cannot be decoded."""
    from PIL import Image

    images, broken = [], []
    for i, (start, end) in enumerate(itertools.pairwise(offsets)):
        try:
            images.append(np.asarray(Image.open(io.BytesIO(blob[start:end])).convert("RGB")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken.append(i)
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(f"{path}: all images must have one size, got {shapes[:4]}. Resize them alike.")
    if broken and not images:
        raise DataError(f"{path}: none of its {len(broken)} JPEG files can be read.")
    return np.stack(images) if images else np.empty((0, 1, 1, 3), np.uint8), broken
