"""Datasets of the zoo are measured on classes that are drawn anew."""

import numpy as np
import pytest

from d2nwg_init.benchmarks.transfer.splits import MOST_CLASSES, SPLITS, measured_on
from zoo_builder.datasets import ImageDataset


def dataset(name, num_classes):
    """Three images of each class, whose pixels are the class."""
    y = np.repeat(np.arange(num_classes), 3)[::-1].copy()
    x = np.broadcast_to(y.astype(np.uint8)[:, None, None, None], (len(y), 4, 4, 3)).copy()
    return ImageDataset(name, x, y, x[::3], y[::3], tuple(f"class {i}" for i in range(num_classes)), "made", "0" * 64)


@pytest.mark.parametrize(("name", "num_classes", "kept"), [("mnist", 10, 5), ("tinyimagenet", 200, MOST_CLASSES)])
def test_a_dataset_of_the_zoo_keeps_some_of_its_classes_with_their_images(name, num_classes, kept):
    seen = set()
    for seed in range(3):
        part = measured_on(dataset(name, num_classes), seed)
        assert part.num_classes == kept
        for x, y, each in ((part.x_train, part.y_train, 3), (part.x_test, part.y_test, 1)):
            assert np.array_equal(np.bincount(y), [each] * kept)
            assert [f"class {v}" for v in x[:, 0, 0, 0]] == [part.class_names[label] for label in y]
        seen.add(part.class_names)
    assert len(seen) > 1
    assert measured_on(dataset(name, num_classes), 2).class_names == part.class_names


@pytest.mark.parametrize("name", [*SPLITS["development"], *SPLITS["held_out"]])
def test_datasets_that_no_zoo_has_seen_are_whole(name):
    whole = dataset(name, 10)
    assert measured_on(whole, 0) is whole


def test_no_dataset_is_in_two_splits():
    names = [name for split in SPLITS.values() for name in split]
    assert len(set(names)) == len(names)
