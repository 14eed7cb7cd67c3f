"""A name in a data folder, a path, or a name of another source -> ImageDataset."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from zoo_builder.datasets.about import read_about
from zoo_builder.datasets.hugging_face import load_hugging_face
from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.datasets.image_folder import is_image_folder, load_image_folder
from zoo_builder.datasets.npz_folder import load_npz
from zoo_builder.datasets.read_images import STORED_SIZE
from zoo_builder.datasets.torchvision_datasets import load_torchvision
from zoo_builder.errors import D2NWGError, DataError, DataWarning, nearest_names

MAX_IMAGES = 20_000  # of each part, at random, of sources that are read image by image
PLUGINS = "d2nwg_init.datasets"  # group of entry points
SHOWN = 5  # broken images that a warning names


def dataset_names(data_dir: str | Path) -> list[str]:
    """Names under a data folder: its .npz files and its folders of class folders."""
    root = Path(data_dir)
    if not root.is_dir():
        raise DataError(f"No data folder {root}: expected .npz files or folders of images in it.")
    folders = (d.name for d in root.iterdir() if d.is_dir() and is_image_folder(d))
    return sorted({p.stem for p in root.glob("*.npz")} | set(folders))


def plugin_names() -> list[str]:
    """Datasets that installed packages offer, as plugin:NAME."""
    return sorted(f"plugin:{point.name}" for point in entry_points(group=PLUGINS))


def load_dataset(
    source: str | Path,
    data_dir: str | Path | None = None,
    *,
    size: int = STORED_SIZE,
    max_images: int | None = MAX_IMAGES,
    download: bool = False,
) -> ImageDataset:
    """Load a name inside `data_dir`, a .npz file, an ImageFolder, "digits" (of scikit-learn), or of another source:

    - "torchvision:NAME": a class of torchvision.datasets, in `data_dir`; arguments "torchvision:EMNIST?split=digits".
    - "hf:ORG/NAME@REVISION": Parquet files of the Hugging Face Hub, from its cache, or a folder of such files.
    - "plugin:NAME": an entry point of the group d2nwg_init.datasets, a function (size, max_images, download) ->
      ImageDataset.

    Images that are not arrays already become `size` x `size` pixels, at most `max_images` of each part. Nothing is
    fetched without `download`. Broken images are skipped with a warning that names them.

    Raises:
        DataError: nothing of that name, or it cannot be read.
    """
    dataset = _load(source, Path(data_dir) if data_dir is not None else None, size, max_images, download)
    if dataset.skipped:
        count = len(dataset.skipped) + len(dataset.x_train) + len(dataset.x_test)
        named = ", ".join(dataset.skipped[:SHOWN]) + (", ..." if len(dataset.skipped) > SHOWN else "")
        warnings.warn(
            f"{dataset.name}: {len(dataset.skipped)} of {count} images cannot be read and are left out: {named}",
            DataWarning,
            stacklevel=2,
        )
    return dataset


def _load(source: str | Path, root: Path | None, size: int, max_images: int | None, download: bool) -> ImageDataset:
    kind, colon, rest = str(source).partition(":")
    name, _, query = rest.partition("?")
    folder = root or Path()
    if colon and kind in ("torchvision", "hf"):
        load = load_torchvision if kind == "torchvision" else load_hugging_face
        dataset = load(name, dict(parse_qsl(query)), folder, size, max_images, download)
        return _with_about(replace(dataset, name=str(source)), folder)
    if colon and kind == "plugin":
        return _load_plugin(rest, size, max_images, download)
    path = Path(source)
    if root is not None:
        path = next((p for p in (root / f"{source}.npz", root / str(source)) if p.exists()), path)
    if path.is_file() and path.suffix == ".npz":
        return _with_about(load_npz(path), path.parent)
    if path.is_dir():
        return _with_about(load_image_folder(path, size, max_images), path.parent)
    if str(source) == "digits":
        return load_digits()
    known = ["digits", *plugin_names(), *(dataset_names(root) if root is not None else [])]
    raise DataError(
        f"No dataset {str(source)!r}: expected an .npz file, a folder with one folder of images a class, "
        f"torchvision:NAME, hf:ORG/NAME@REVISION, or a name; {nearest_names(str(source), known)}"
    )


def _with_about(dataset: ImageDataset, folder: Path) -> ImageDataset:
    about = read_about(folder, dataset.name)
    return replace(dataset, licence=about.licence or dataset.licence, origin=about.origin or dataset.origin)


def _load_plugin(name: str, size: int, max_images: int | None, download: bool) -> ImageDataset:
    found = entry_points(group=PLUGINS, name=name)
    if not found:
        raise DataError(f"No installed package offers the dataset {name!r}; {nearest_names(name, plugin_names())}")
    (point, *_) = found
    try:
        dataset = point.load()(size=size, max_images=max_images, download=download)
    except D2NWGError:
        raise
    except Exception as e:  # of any kind: it is another's code
        raise DataError(
            f"plugin:{name} ({point.value}) cannot be loaded ({e!r}). Mend the package that offers it, or uninstall it."
        ) from e
    if not isinstance(dataset, ImageDataset):
        raise DataError(f"plugin:{name} ({point.value}) gave a {type(dataset).__name__}, expected an ImageDataset.")
    return replace(dataset, name=f"plugin:{name}")


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
