"""Which datasets measure what. Those that are neither of the development nor of the held-out split may be in a zoo."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from zoo_builder.datasets import ImageDataset
from zoo_builder.domain_images import stable_seed

Split = Literal["development", "held_out", "in_distribution"]

SPLITS: dict[Split, tuple[str, ...]] = {
    # All choices are made on these.
    "development": ("kmnist", "fashion_mnist", "pacs_art_painting", "dtd_part", "natural_images", "chars74k"),
    # No choice is; every run is put on record.
    "held_out": (
        "cifar10", "kannada_digits", "notmnist", "pacs_cartoon", "trashnet",
        "flowers5", "blood_cells", "gtsrb", "sign_digits", "rsscn7",
    ),
    # The zoo's own, of six classes and more: what a generator should know. See `measured_on`.
    "in_distribution": (
        "bangla_digits", "devanagari_digits", "telugu_digits", "mnist", "omniglot_chars",
        "fruit_outlines", "medical_mnist", "pacs_photo", "pacs_sketch", "tinyimagenet",
    ),
}  # fmt: skip
MOST_CLASSES = 20  # of a dataset of the zoo


def measured_on(dataset: ImageDataset, seed: int) -> ImageDataset:
    """Of a dataset of the zoo half of its classes, 20 at most, anew for every seed: another task than any entry's. All
    of a dataset that no zoo has seen."""
    if dataset.name not in SPLITS["in_distribution"]:
        return dataset
    count = min(MOST_CLASSES, dataset.num_classes // 2)
    rng = np.random.default_rng(stable_seed("measured_on", dataset.name, seed))
    classes = np.sort(rng.choice(dataset.num_classes, count, replace=False))
    parts = {}
    for part in ("train", "test"):
        y = getattr(dataset, f"y_{part}")
        kept = np.isin(y, classes)
        parts[f"x_{part}"] = getattr(dataset, f"x_{part}")[kept]
        parts[f"y_{part}"] = np.searchsorted(classes, y[kept])
    return replace(dataset, class_names=tuple(dataset.class_names[c] for c in classes), **parts)
