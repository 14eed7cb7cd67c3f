"""A task's images: decoded once, resized, the classes and the domain of the task."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.zoo_builder.synthetic import striped_dataset, tiny_task
from zoo_builder import domain_images
from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.domain_images import PARTS, SharedImages, sample_images
from zoo_builder.domains import apply_domain


def coloured(classes=6, each=10):
    """Images of one colour, which tells the class, and a corner that tells the image."""
    y = np.tile(np.arange(classes), each)
    x = np.zeros((len(y), 32, 32, 3), np.uint8)
    x[:] = (y * 40)[:, None, None, None]
    return ImageDataset("colours", x, y, x.copy(), y.copy(), tuple(map(str, range(classes))), "made up", "0" * 64)


@pytest.fixture
def shared(tmp_path):
    return SharedImages(
        tmp_path / "shared", 32, lambda name: coloured() if name == "colours" else striped_dataset(name)
    )


def test_images_are_those_of_the_dataset_at_the_size(tmp_path):
    dataset = striped_dataset()
    for size in (32, 20):
        read = SharedImages(tmp_path, size, lambda _: dataset).read("stripes")
        assert torch.equal(torch.from_numpy(read[0].copy()), resize_images(dataset.x_train, size))
        assert np.array_equal(read[1], dataset.y_train)
        assert np.array_equal(read[3], dataset.y_test)


def test_a_dataset_is_loaded_once_and_then_mapped(tmp_path):
    loaded = []
    shared = SharedImages(tmp_path, 32, lambda name: loaded.append(name) or striped_dataset(name))
    arrays = [shared.read(n) for n in ("a", "a", "b:c/d", "a")]
    assert loaded == ["a", "b:c/d"]
    assert isinstance(arrays[1][0], np.memmap)
    assert not arrays[1][0].flags.writeable


def test_a_part_that_nothing_is_scored_on_is_left_out(tmp_path):
    shared = SharedImages(tmp_path, 32, lambda name: striped_dataset(name))
    for domain in ("plain", "gray"):
        whole, some = (shared.view("stripes", domain, tiny_task(), test=test) for test in (True, False))
        assert len(whole.x_test) == len(whole.y_test) == 24
        assert len(some.x_test) == len(some.y_test) == 0
        assert torch.equal(some.x_train, whole.x_train)
        assert torch.equal(some.y_train, whole.y_train)


def test_two_who_load_at_once_both_get_it(tmp_path):
    def load(name):
        if not loads:
            loads.append(name)
            other.read(name)  # another worker, in the middle of this one's reading
        return striped_dataset(name)

    loads = []
    shared, other = (SharedImages(tmp_path, 32, f) for f in (load, striped_dataset))
    assert np.array_equal(shared.read("a")[0], other.read("a")[0])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_class_subset_is_renumbered_alike_in_both_parts(shared):
    view = shared.view("colours", "plain", tiny_task(class_subset=3))
    assert view.num_classes == 3
    for x, y in ((view.x_train, view.y_train), (view.x_test, view.y_test)):
        assert sorted(y.unique().tolist()) == [0, 1, 2]
        colours = [x[y == c].unique().tolist() for c in range(3)]
        assert all(len(c) == 1 for c in colours)
        assert colours == sorted(colours)
    assert torch.equal(view.x_train[view.y_train == 1][0], view.x_test[view.y_test == 1][0])
    assert shared.view("colours", "plain", tiny_task(class_subset=99)).num_classes == 6


def test_subset_depends_on_seed_and_domain(shared):
    def colours(**changes):
        return tuple(shared.view("colours", "plain", tiny_task(class_subset=3, **changes)).x_train.unique().tolist())

    assert colours() == colours()
    assert len({colours(seed=s) for s in range(8)}) > 1


def test_a_class_subset_is_of_classes_that_have_images(tmp_path):
    """As of a dataset whose classes kept the numbers that they have in a larger one."""
    numbers = np.array([0, 40, 41, 42, 70, 90])
    whole, names = coloured(), tuple(map(str, range(91)))
    sparse = replace(whole, y_train=numbers[whole.y_train], y_test=numbers[whole.y_test], class_names=names)
    shared, gapless = (SharedImages(tmp_path / d.class_names[-1], 32, lambda _, d=d: d) for d in (sparse, whole))
    for subset, count in ((3, 3), (20, 6)):
        task = tiny_task(class_subset=subset)
        view, wanted = (images.view("colours", "plain", task) for images in (shared, gapless))
        assert view.num_classes == wanted.num_classes == len(view.members) == count
        for part in PARTS:
            assert torch.equal(getattr(view, part), getattr(wanted, part))


def test_domain_is_applied(shared):
    plain, inverted = (shared.view("stripes", d, tiny_task()) for d in ("plain", "invert"))
    assert torch.equal(inverted.x_train, apply_domain(plain.x_train, "invert", 0))
    assert torch.equal(plain.y_train, inverted.y_train)


def test_no_more_images_than_the_limit_and_with_their_labels(shared, monkeypatch):
    monkeypatch.setattr(domain_images, "MAX_IMAGES", 25)
    view = shared.view("colours", "plain", tiny_task())
    assert len(view.x_train) == len(view.y_train) == len(view.x_test) == 25
    assert torch.equal(view.x_train[:, 0, 0, 0], (view.y_train * 40).byte())


def test_a_sample_has_no_image_twice_and_depends_on_its_seed():
    images = torch.arange(50).view(50, 1, 1, 1)
    sample, index = sample_images(images, 20, 0)
    assert len(index.unique()) == 20
    assert torch.equal(sample, images[index])
    assert not torch.equal(index, sample_images(images, 20, 1)[1])
    assert len(sample_images(images, 80, 0)[1].unique()) == 50
