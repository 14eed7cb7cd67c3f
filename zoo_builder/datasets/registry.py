"""A name in a data folder, or a path -> ImageDataset."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.datasets.image_folder import load_image_folder
from zoo_builder.datasets.npz_folder import load_npz
from zoo_builder.errors import DataError, nearest_names


def dataset_names(data_dir: str | Path) -> list[str]:
    """Names under a data folder: its .npz files and its folders of class folders."""
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"No data folder {root}: expected .npz files or folders of images in it.")
    folders = (d.name for d in root.iterdir() if d.is_dir() and any(c.is_dir() for c in d.iterdir()))
    return sorted({p.stem for p in root.glob("*.npz")} | set(folders))


def load_dataset(source: str | Path, data_dir: str | Path | None = None) -> ImageDataset:
    """Load "digits" (scikit-learn's, embedded), a .npz file, an ImageFolder, or a name inside `data_dir`.

    Raises:
        DataError: nothing of that name, or it cannot be read.
    """
    path = Path(source)
    if data_dir is not None:
        root = Path(data_dir)
        path = next((p for p in (root / f"{source}.npz", root / str(source)) if p.exists()), path)
    if path.is_file() and path.suffix == ".npz":
        return load_npz(path)
    if path.is_dir():
        return load_image_folder(path)
    if str(source) == "digits":
        return load_digits()
    known = ["digits", *(dataset_names(data_dir) if data_dir is not None else [])]
    raise DataError(
        f"No dataset {str(source)!r}: expected an .npz file, a folder with one folder of images a class, "
        f"or a name; {nearest_names(str(source), known)}"
    )


def load_digits(test_fraction: float = 1 / 3, seed: int = 0) -> ImageDataset:
    """scikit-learn's 1,797 handwritten digits (8x8 gray; UCI Optical Recognition of Handwritten Digits, CC BY 4.0)."""
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    bunch = sklearn.datasets.load_digits()
    images = np.repeat((bunch.images * (255 / 16)).round().astype(np.uint8)[..., None], 3, axis=-1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, bunch.target.astype(np.int64), test_size=test_fraction, random_state=seed, stratify=bunch.target
    )
    return ImageDataset(
        name="digits",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=tuple(str(c) for c in bunch.target_names),
        origin="scikit-learn load_digits",
        sha256=hashlib.sha256(images.tobytes()).hexdigest(),
        licence="CC BY 4.0",
    )
