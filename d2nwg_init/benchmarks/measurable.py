"""Which datasets something can be measured on: those with test images, which it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable

from pretrained_generators.bundle import BundleConfig
from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.same_dataset import is_among
from zoo_builder.errors import DataError


def check_measurable(dataset: ImageDataset, bundles: Iterable[BundleConfig] = ()) -> None:
    """
    Raises:
        DataError: one of the bundles was trained on it, or it has no test images.
    """
    for config in bundles:
        if is_among(dataset.name, config.seen):
            raise DataError(
                f"The bundle {config.name!r} was trained on {dataset.name!r}: it would be measured on what it knows. "
                f"Take a dataset that it never saw, such as one of {', '.join(config.held_out)}."
            )
    if not len(dataset.x_test):
        raise DataError(
            f"Dataset {dataset.name!r} has no test images to measure on. Give 5 images a class or more, or a test part "
            "(a test/ folder beside train/)."
        )
