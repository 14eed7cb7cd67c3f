"""How many classes the dataset behind a loader says that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from zoo_builder.errors import DataError
from zoo_builder.support_set import LABEL_KEYS


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
        if isinstance(features, Mapping) and (label := _label(features)) is not None:
            return len(label.names)
        dataset = getattr(dataset, "dataset", None)  # inside of a Subset
    raise DataError("The loader's dataset does not say how many classes it has. Pass num_classes.")


def _label(features: Mapping[str, Any]) -> Any:
    """The column that is read as the label, or the only one of classes, if it says its names."""
    read = next((k for k in LABEL_KEYS if k in features), None)
    of_classes = [k for k, feature in features.items() if hasattr(feature, "names")]
    name = of_classes[0] if read is None and len(of_classes) == 1 else read
    return features[name] if name in of_classes else None
