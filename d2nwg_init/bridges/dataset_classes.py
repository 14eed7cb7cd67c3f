"""How many classes the dataset behind a loader says that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from zoo_builder.errors import DataError


def num_classes_of(train_loader: Any) -> int:
    """From the `classes` of torchvision's datasets, or the label's feature of those of Hugging Face.

    Raises:
        DataError: the dataset does not say.
    """
    dataset = getattr(train_loader, "dataset", None)
    while dataset is not None:
        classes, features = getattr(dataset, "classes", None), getattr(dataset, "features", None)
        if isinstance(classes, Sized):
            return len(classes)
        for feature in features.values() if isinstance(features, Mapping) else ():
            if hasattr(feature, "names"):
                return len(feature.names)
        dataset = getattr(dataset, "dataset", None)  # inside of a Subset
    raise DataError("The loader's dataset does not say how many classes it has. Pass num_classes.")
