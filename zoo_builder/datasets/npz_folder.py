"""One .npz file a dataset: x_train, y_train, x_test, y_test, class_names; images raw or as one blob of JPEG files."""

from __future__ import annotations

import hashlib
import io
import itertools
import zipfile
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
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as e:
        raise DataError(f"{path} is not a readable .npz file without pickled objects ({e}).") from e
    missing = {"y_train", "y_test"} - arrays.keys()
    if missing:
        raise DataError(f"{path}: expected the keys y_train and y_test, missing {sorted(missing)}.")
    y_train, y_test = (arrays[k].astype(np.int64).reshape(-1) for k in ("y_train", "y_test"))
    class_names = arrays.get("class_names", np.arange(int(max(y_train.max(initial=0), y_test.max(initial=0))) + 1))
    return ImageDataset(
        name=path.stem,
        x_train=_images(arrays, "train", path),
        y_train=y_train,
        x_test=_images(arrays, "test", path),
        y_test=y_test,
        class_names=tuple(str(c) for c in class_names),
        origin=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _images(arrays: dict[str, np.ndarray], part: str, path: Path) -> np.ndarray:
    if f"x_{part}" in arrays:
        images = arrays[f"x_{part}"]
    elif f"x_{part}_jpeg" in arrays and f"x_{part}_off" in arrays:
        images = _decode_jpegs(arrays[f"x_{part}_jpeg"].tobytes(), arrays[f"x_{part}_off"], path)
    else:
        raise DataError(f"{path}: expected x_{part}, or x_{part}_jpeg with x_{part}_off.")
    return np.repeat(images[..., None], 3, axis=-1) if images.ndim == 3 else images


def _decode_jpegs(blob: bytes, offsets: np.ndarray, path: Path) -> np.ndarray:
    from PIL import Image

    images = []
    for i, (start, end) in enumerate(itertools.pairwise(offsets)):
        try:
            images.append(np.asarray(Image.open(io.BytesIO(blob[start:end])).convert("RGB")))
        except OSError as e:
            raise DataError(f"{path}: image {i} is not a readable JPEG ({e}).") from e
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(f"{path}: all images must have one size, got {shapes[:4]}. Resize them alike.")
    return np.stack(images)
