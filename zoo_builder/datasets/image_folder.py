"""A folder with one folder of images a class, as ImageFolder reads it; train/ and val/ or test/ where they exist."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.errors import DataError

STORED_SIZE = 64  # pixels; images are cut to their centre square and kept at this size


def load_image_folder(path: Path, size: int = STORED_SIZE, test_fraction: float = 0.2, seed: int = 0) -> ImageDataset:
    """Read `path`/class/*.png, or `path`/train/class and `path`/{val,test}/class.

    Without a test part, `test_fraction` of each class is set aside at random (`seed`).

    Raises:
        DataError: no class folders, no images, or an image that cannot be read (named).
    """
    test_dir = next((path / d for d in ("test", "val", "validation") if (path / d).is_dir()), None)
    if (path / "train").is_dir() and test_dir is not None:
        x_train, y_train, classes, digest = _read(path / "train", size)
        x_test, y_test, test_classes, test_digest = _read(test_dir, size)
        if test_classes != classes:
            raise DataError(
                f"{path}: train/ and {test_dir.name}/ must hold the same class folders; "
                f"only in one: {sorted(set(classes) ^ set(test_classes))[:5]}."
            )
        digest += test_digest
    else:
        images, labels, classes, digest = _read(path, size)
        is_test = np.zeros(len(labels), bool)
        rng = np.random.default_rng(seed)
        for c in range(len(classes)):
            members = rng.permutation(np.flatnonzero(labels == c))
            is_test[members[: int(len(members) * test_fraction)]] = True
        x_train, y_train, x_test, y_test = images[~is_test], labels[~is_test], images[is_test], labels[is_test]
    sha256 = hashlib.sha256(digest.encode()).hexdigest()
    return ImageDataset(path.name, x_train, y_train, x_test, y_test, tuple(classes), path.name, sha256)


def _read(path: Path, size: int) -> tuple[np.ndarray, np.ndarray, list[str], str]:
    from PIL import Image, UnidentifiedImageError
    from torchvision.datasets import ImageFolder

    try:
        folder = ImageFolder(str(path))
    except FileNotFoundError as e:
        raise DataError(f"{path}: expected one folder of images for each class ({e}).") from e
    digest = hashlib.sha256()
    images = np.empty((len(folder.samples), size, size, 3), np.uint8)
    for i, (file, _) in enumerate(folder.samples):
        digest.update(Path(file).relative_to(path).as_posix().encode() + Path(file).read_bytes())
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                box = (left, top, left + side, top + side)
                images[i] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
        except (UnidentifiedImageError, OSError) as e:
            raise DataError(f"{file} is not a readable image ({e}). Repair or remove it, then run again.") from e
    return images, np.asarray(folder.targets, np.int64), folder.classes, digest.hexdigest()
