"""Held-out images in zoo sets are found, and what merely looks alike is not."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.zoo_builder.synthetic import striped_dataset
from zoo_builder.datasets import load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.errors import DataError
from zoo_builder.leakage import Leak, check_leakage, find_leaks, held_out_datasets


def smooth(name, seed, count=40):
    """Pictures of a few broad shapes, as photos are at this size."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    images = resize_images(coarse, 48).permute(0, 2, 3, 1).numpy()
    return dataclasses.replace(striped_dataset(name), x_train=images[:30], y_train=np.arange(30) % 3,
                               x_test=images[30:], y_test=np.arange(count - 30) % 3)  # fmt: skip


def test_sets_of_their_own_do_not_leak():
    assert not find_leaks([smooth("a", 0), striped_dataset("b")], [smooth("c", 1), striped_dataset("d", seed=7)])


def test_copied_images_are_found_in_whichever_part():
    held = smooth("held", 0)
    zoo = smooth("zoo", 1)
    stolen = np.concatenate([zoo.x_train[:25], held.x_train[:3], held.x_test[:2]])
    found = find_leaks([dataclasses.replace(zoo, x_train=stolen)], [smooth("other", 2), held])
    assert found == {Leak("zoo", "held", "exact"): 5}


def test_brighter_noisy_copies_are_found_as_perceptual():
    held = smooth("held", 0)
    noise = np.random.default_rng(3).normal(0, 1.0, held.x_train.shape)
    changed = (held.x_train * 0.9 + 10 + noise).clip(0, 255).astype(np.uint8)
    found = find_leaks([dataclasses.replace(smooth("zoo", 1), x_train=changed)], [held])
    assert set(found) == {Leak("zoo", "held", "perceptual")}
    assert sum(found.values()) >= 10


def test_copies_that_are_stored_otherwise_are_refused_and_a_few_that_look_equal_are_not(tmp_path):
    """The same pictures, larger, in a folder of files: no pixels are equal."""
    held = smooth("held", 0)
    for i, image in enumerate(np.concatenate([held.x_train, held.x_test])):
        (tmp_path / "mine" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "mine" / str(i % 3) / f"{i}.png")
    mine = load_dataset("mine", tmp_path)
    assert {leak.kind for leak in find_leaks([mine], [held])} == {"perceptual"}
    with pytest.raises(DataError, match=r"images of mine are in held \(perceptual\)"):
        check_leakage([mine], [held], "refuse")
    few = dataclasses.replace(smooth("few", 1), x_test=mine.x_train[:1], y_test=np.arange(1))
    assert find_leaks([few], [held])
    check_leakage([few], [held], "refuse")


def test_flat_images_are_no_leak():
    blank = np.full((30, 48, 48, 3), 255, np.uint8)
    sets = [dataclasses.replace(smooth(n, i), x_train=blank) for i, n in enumerate(("zoo", "held"))]
    assert not find_leaks(sets[:1], sets[1:])


def test_policies(caplog):
    held = smooth("held", 0)
    copied = dataclasses.replace(held, name="zoo")
    with pytest.raises(DataError, match=r"40 images of zoo are in held \(exact\)"):
        check_leakage([copied], [held], "refuse")
    caplog.clear()
    check_leakage([copied], [held], "report")
    assert "40 images of zoo are in held (exact)" in caplog.text
    check_leakage([smooth("zoo", 1)], [held], "refuse")


@pytest.mark.parametrize(
    ("held_out", "available", "looked_at"),
    [
        (["cifar10"], ["CIFAR-10", "cifar100"], ["CIFAR-10"]),
        (["torchvision:CIFAR10"], ["cifar10"], ["cifar10", "torchvision:CIFAR10"]),
        (["digits", "absent"], ["bands"], ["digits"]),
        (["digits"], ["Digits"], ["Digits"]),
    ],
)
def test_held_out_datasets_are_looked_at_under_any_of_their_names(held_out, available, looked_at):
    assert [d.name for d in held_out_datasets(held_out, available, striped_dataset)] == looked_at
