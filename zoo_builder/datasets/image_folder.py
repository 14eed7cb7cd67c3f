"""A folder with one folder of images a class, as ImageFolder reads it; train/ and a test part where they exist."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from PIL import Image

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.datasets.read_images import (
    STORED_SIZE,
    TEST_PARTS,
    Part,
    Sample,
    assemble,
    picture_formats,
    read_part,
)
from zoo_builder.errors import DataError


def load_image_folder(path: Path, size: int = STORED_SIZE, max_images: int | None = None) -> ImageDataset:
    """Read `path`/class/*, or `path`/train/class and `path`/{test,val,valid,validation}/class, of which none is hidden.

    Raises:
        DataError: no class folders, no image that can be read, or class folders in train/ and no test part.
    """
    name = os.path.basename(os.path.abspath(path))  # of "." too
    train_dir, test_dir = path / "train", next((path / d for d in TEST_PARTS if (path / d).is_dir()), None)
    if test_dir is None and any(d.is_dir() for d in train_dir.glob("*")):
        beside = ", ".join(sorted(d.name for d in path.iterdir() if d != train_dir)) or "nothing"
        raise DataError(
            f"{path}: train/ holds class folders, and beside it is {beside}; expected a test part called "
            f"{' or '.join(TEST_PARTS)}. Name it so, or give {train_dir}, of which a part is set aside."
        )
    if not train_dir.is_dir() or test_dir is None:
        part, classes = _read(path, size, max_images)
        return assemble(name, part, None, classes, name)
    train, classes = _read(train_dir, size, max_images)
    test, test_classes = _read(test_dir, size, max_images)
    if test_classes != classes:
        raise DataError(
            f"{path}: train/ and {test_dir.name}/ must hold the same class folders; "
            f"only in one: {sorted(set(classes) ^ set(test_classes))[:5]}."
        )
    return assemble(name, train, test, classes, name)


def is_image_folder(path: Path) -> bool:
    """Whether a folder of `path`, or a folder in that, holds an image by its file name."""
    depths = ("*/*", "*/*/*")
    files = (file for depth in depths for file in path.glob(depth) if not file.parent.name.startswith("."))
    return any(file.suffix.lower() in image_endings() for file in files)


@functools.cache
def image_endings() -> tuple[str, ...]:
    """Of files that Pillow can read, and of those that torchvision takes for images, which may be broken here."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in picture_formats()}
    return tuple(sorted(readable | {*IMG_EXTENSIONS}))


def _read(path: Path, size: int, max_images: int | None) -> tuple[Part, list[str]]:
    from torchvision.datasets import DatasetFolder

    class ShownFolders(DatasetFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            shown = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
            if not shown:
                raise FileNotFoundError("all that there are are hidden")
            return shown, {name: i for i, name in enumerate(shown)}

    try:
        folder = ShownFolders(str(path), loader=Path, extensions=image_endings())
    except FileNotFoundError as e:
        raise DataError(f"{path}: expected one folder of images for each class ({e}).") from e

    def get(i: int) -> Sample:
        file, label = folder.samples[i]
        return Sample(_printable(Path(file).relative_to(path).as_posix()), label, Path(file).read_bytes())

    return read_part(get, len(folder.samples), size, max_images), [_printable(name) for name in folder.classes]


def _printable(name: str) -> str:
    """A name of the file system, of which bytes that are no UTF-8 are written as \\xNN; any other name as it is."""
    return os.fsencode(name).decode(errors="backslashreplace")
