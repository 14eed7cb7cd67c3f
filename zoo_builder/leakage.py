"""Held-out images found again in the datasets of a zoo: equal pixels, or pictures that look equal."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.datasets.same_dataset import is_among
from zoo_builder.errors import DataError

SIZE = 32  # pixels at which images are compared, whatever size they are stored at
FLAT = 4.0  # gray levels; an image that varies less shows nothing that could leak
CORRELATION = 0.99  # of the gray images, to call two of one difference hash the same picture
COPIED = 0.05  # of the smaller dataset; more pictures that look equal are copies, stored at another size or otherwise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leak:
    zoo_dataset: str
    held_out_dataset: str
    kind: str  # "exact" or "perceptual"


def find_leaks(zoo_sets: Iterable[ImageDataset], held_out_sets: Iterable[ImageDataset]) -> Counter[Leak]:
    """How many images of a zoo dataset are in a held-out one, train and test parts alike.

    Perceptual: equal difference hashes (9x8 gray, 64 bits; Krawetz 2013), confirmed by the correlation of the gray
    images, since drawings of a few strokes share hashes by chance.
    """
    exact: dict[bytes, str] = {}
    looks: dict[int, list[tuple[str, np.ndarray]]] = {}
    for dataset in held_out_sets:
        for pixels, look, gray in _fingerprints(dataset):
            exact.setdefault(pixels, dataset.name)
            looks.setdefault(look, []).append((dataset.name, gray))
    found: Counter[Leak] = Counter()
    for dataset in zoo_sets:
        for pixels, look, gray in _fingerprints(dataset):
            if pixels in exact:
                found[Leak(dataset.name, exact[pixels], "exact")] += 1
                continue
            same = next((n for n, other in looks.get(look, ()) if float(gray @ other) >= CORRELATION), None)
            if same is not None:
                found[Leak(dataset.name, same, "perceptual")] += 1
    return found


def check_leakage(zoo_sets: Iterable[ImageDataset], held_out_sets: Iterable[ImageDataset], policy: str) -> None:
    """Say what leaks (as a warning in the log); with the policy "refuse", equal pixels are an error, and more pictures
    that look equal than chance gives.

    Raises:
        DataError: naming the datasets.
    """
    sizes: dict[str, int] = {}

    def counted(sets: Iterable[ImageDataset]) -> Iterator[ImageDataset]:
        for dataset in sets:
            sizes[dataset.name] = len(dataset.x_train) + len(dataset.x_test)
            yield dataset

    found = find_leaks(counted(zoo_sets), counted(held_out_sets))
    copies = [n > COPIED * min(sizes[k.zoo_dataset], sizes[k.held_out_dataset]) for k, n in found.items()]
    texts = [f"{n} images of {k.zoo_dataset} are in {k.held_out_dataset} ({k.kind})" for k, n in found.items()]
    for text in texts:
        log.warning("leak: %s", text)
    if policy == "refuse" and (any(copies) or any(leak.kind == "exact" for leak in found)):
        raise DataError(
            f"Held-out images are in the zoo's datasets: {'; '.join(texts)}. Remove them, hold these datasets out too, "
            'or set leakage = "report" in the recipe to go on all the same.'
        )


def held_out_datasets(
    names: Iterable[str], available: Iterable[str], load: Callable[[str], ImageDataset]
) -> Iterator[ImageDataset]:
    """Those of the held-out datasets that are there to be looked at: in the folder, under any of their names, of
    another source, or scikit-learn's digits."""
    available = list(available)
    for name in names:
        there = [other for other in available if is_among(other, [name])]
        if ":" in name:
            there.append(name)
        elif not there and is_among(name, ["digits"]):
            there.append("digits")
        for source in there:
            try:
                yield load(source)
            except DataError as e:
                log.warning("held out, but not looked for in the zoo's datasets: %s", e)


def _fingerprints(dataset: ImageDataset) -> Iterator[tuple[bytes, int, np.ndarray]]:
    """Of each image that is not flat: its pixels, its difference hash, its gray image (zero mean, unit norm)."""
    for images in (dataset.x_train, dataset.x_test):
        for start in range(0, len(images), 1024):
            part = images[start : start + 1024]
            small = resize_images(part, SIZE).numpy()
            gray = small.astype(np.float32).mean(1)
            coarse = resize_images(np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1), 9)[:, 0, :8].numpy()
            bits = np.packbits((coarse[:, :, 1:] > coarse[:, :, :-1]).reshape(len(part), 64), axis=1)
            looks = bits.view(np.uint64)[:, 0]
            flat = gray.reshape(len(part), -1)
            varies = flat.std(1) >= FLAT
            flat = flat - flat.mean(1, keepdims=True)
            flat /= np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-6)
            for i in np.flatnonzero(varies):
                yield small[i].tobytes(), int(looks[i]), flat[i].astype(np.float16).astype(np.float32)
