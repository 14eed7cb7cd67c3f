"""Sources of images: what is read back, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from zoo_builder.datasets import load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.domains import DOMAINS, apply_domain
from zoo_builder.errors import DataError, RecipeError


def images(n=8, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, size, size, 3), dtype=np.uint8)


def write_folder(root, classes=("cat", "dog"), n=5):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i, x in enumerate(images(n, 64, seed=c)):
            Image.fromarray(x).save(root / name / f"{i}.png")


def test_npz_round_trip_of_colour_and_gray(tmp_path):
    x, y = images(), np.arange(8) % 2
    np.savez(tmp_path / "rgb.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2], class_names=np.array(["a", "b"]))
    np.savez(tmp_path / "gray.npz", x_train=x[..., 0], y_train=y, x_test=x[:2, ..., 0], y_test=y[:2])
    rgb, gray = load_dataset("rgb", tmp_path), load_dataset(tmp_path / "gray.npz")
    assert np.array_equal(rgb.x_train, x)
    assert rgb.class_names == ("a", "b")
    assert all(np.array_equal(gray.x_train[..., c], x[..., 0]) for c in range(3))
    assert rgb.sha256 != gray.sha256


def test_npz_with_a_jpeg_blob_decodes_each_image(tmp_path):
    flat = [np.full((16, 16, 3), v, np.uint8) for v in (10, 120, 240)]
    blobs = []
    for x in flat:
        file = io.BytesIO()
        Image.fromarray(x).save(file, "JPEG", quality=95)
        blobs.append(file.getvalue())
    part = {"jpeg": np.frombuffer(b"".join(blobs), np.uint8), "off": np.cumsum([0, *map(len, blobs)])}
    arrays = {f"x_{split}_{k}": v for split in ("train", "test") for k, v in part.items()}
    np.savez(tmp_path / "j.npz", **arrays, y_train=np.array([0, 1, 0]), y_test=np.array([0, 1, 0]))
    assert np.abs(load_dataset("j", tmp_path).x_train.astype(int) - np.stack(flat)).max() <= 2


def test_pickled_and_broken_npz_are_refused(tmp_path):
    np.savez(tmp_path / "p.npz", x_train=np.array([{"a": 1}], dtype=object), y_train=np.zeros(1), y_test=np.zeros(1))
    (tmp_path / "b.npz").write_bytes(b"not a zip")
    for name in ("p", "b"):
        with pytest.raises(DataError, match=name + ".npz"):
            load_dataset(name, tmp_path)


def test_image_folder_is_split_by_class_and_the_same_every_time(tmp_path):
    write_folder(tmp_path / "pets", n=10)
    first, second = (load_dataset("pets", tmp_path) for _ in range(2))
    assert np.bincount(first.y_test).tolist() == [2, 2]
    assert np.bincount(first.y_train).tolist() == [8, 8]
    assert np.array_equal(first.x_test, second.x_test)
    assert first.sha256 == second.sha256


def test_image_folder_with_its_own_test_part(tmp_path):
    write_folder(tmp_path / "train", n=4)
    write_folder(tmp_path / "val", n=3)
    dataset = load_dataset(tmp_path)
    assert (len(dataset.y_train), len(dataset.y_test)) == (8, 6)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    with pytest.raises(DataError, match="cow"):
        load_dataset(tmp_path)


def test_broken_image_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"dog/3\.png"):
        load_dataset(tmp_path)


def test_one_class_no_class_and_wrong_names_are_refused(tmp_path):
    write_folder(tmp_path / "lone", classes=("cat",))
    with pytest.raises(DataError, match="at least 2"):
        load_dataset(tmp_path / "lone")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="one folder of images"):
        load_dataset(tmp_path / "none")
    with pytest.raises(DataError, match="did you mean 'lone'"):
        load_dataset("lono", tmp_path)


def test_digits_are_embedded_and_their_parts_do_not_meet():
    digits = load_dataset("digits")
    assert digits.num_classes == 10
    assert len(digits.y_train) + len(digits.y_test) == 1797
    train, test = ({x.tobytes() for x in part} for part in (digits.x_train, digits.x_test))
    assert not train & test


def test_resizing_to_the_same_size_changes_nothing():
    x = images()
    assert torch.equal(resize_images(x, 16).permute(0, 2, 3, 1), torch.from_numpy(x))
    assert resize_images(x, 24).shape == (8, 3, 24, 24)


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_keeps_shape_and_depends_on_its_seed_alone(domain):
    x = resize_images(images(), 32)
    first = apply_domain(x, domain, 3)
    assert first.shape == x.shape
    assert first.dtype == torch.uint8
    torch.manual_seed(99)
    assert torch.equal(first, apply_domain(x, domain, 3))
    assert torch.equal(first, x) == (domain == "plain")


def test_inverting_twice_is_the_identity():
    x = resize_images(images(), 16)
    assert torch.equal(apply_domain(apply_domain(x, "invert", 0), "invert", 0), x)


def test_unknown_domain_names_the_nearest():
    with pytest.raises(RecipeError, match="'rotate'"):
        apply_domain(resize_images(images(), 16), "rotat", 0)
