"""Sources of images: what is read back, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.zoo_builder.synthetic import CLASSES, striped_dataset, striped_images, write_image_folder, write_npz
from zoo_builder.datasets import ImageDataset, dataset_names, load_dataset
from zoo_builder.datasets.image_dataset import normalize_images, resize_images
from zoo_builder.datasets.read_images import TEST_PARTS, Part, split_by_class
from zoo_builder.errors import DataError, DataWarning

SPLITS = ("x_train", "y_train", "x_test", "y_test")


def jpegs(images):
    """The blob of an .npz file and where each image begins."""
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def write_jpeg_npz(path, images, labels, damage=lambda blob: blob):
    blob, offsets = jpegs(images)
    arrays = {f"x_{s}_{k}": v for s in ("train", "test") for k, v in (("jpeg", damage(blob)), ("off", offsets))}
    np.savez(path, **arrays, y_train=labels, y_test=labels)


def test_npz_comes_back_as_written(tmp_path):
    written = striped_dataset()
    write_npz(tmp_path / "stripes.npz", written)
    for read in (load_dataset("stripes", tmp_path), load_dataset(tmp_path / "stripes.npz")):
        assert all(np.array_equal(getattr(read, k), getattr(written, k)) for k in SPLITS)
        assert (read.name, read.class_names, read.num_classes) == ("stripes", CLASSES, 3)
        assert (read.x_train.dtype, read.y_train.dtype) == (np.uint8, np.int64)


def test_npz_tells_its_licence_and_the_folder_has_the_last_word(tmp_path):
    x, y = striped_images(6)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y, licence="MIT", origin="a paper")
    assert [(d.licence, d.origin) for d in [load_dataset("a", tmp_path)]] == [("MIT", "a paper")]
    (tmp_path / "datasets.toml").write_text('[a]\nlicence = "CC0"\n[b]\norigin = "elsewhere"\n')
    assert [(d.licence, d.origin) for d in [load_dataset("a", tmp_path)]] == [("CC0", "a paper")]
    write_image_folder(tmp_path / "b")
    assert [(d.licence, d.origin) for d in [load_dataset("b", tmp_path)]] == [("unknown", "elsewhere")]
    for text in ('[a]\nlicense = "CC0"\n', "[a"):
        (tmp_path / "datasets.toml").write_text(text)
        with pytest.raises(DataError, match=r"datasets\.toml"):
            load_dataset("a", tmp_path)


def test_gray_npz_without_class_names_becomes_colour_with_numbered_classes(tmp_path):
    x, y = striped_images(9, classes=3)
    np.savez(tmp_path / "g.npz", x_train=x[..., 0], y_train=y, x_test=x[:2, ..., 1], y_test=y[:2].astype(np.uint8))
    read = load_dataset("g", tmp_path)
    assert all(np.array_equal(read.x_train[..., c], x[..., 0]) for c in range(3))
    assert all(np.array_equal(read.x_test[..., c], x[:2, ..., 1]) for c in range(3))
    assert read.class_names == ("0", "1", "2")


def test_npz_with_a_jpeg_blob_decodes_each_image_at_its_place(tmp_path):
    flat = [np.full((16, 16, 3), (v, 255 - v, 90), np.uint8) for v in (10, 120, 240)]
    write_jpeg_npz(tmp_path / "j.npz", flat, np.array([0, 1, 0]))
    read = load_dataset("j", tmp_path)
    assert np.abs(read.x_train.astype(int) - np.stack(flat)).max() <= 3
    assert read.y_test.tolist() == [0, 1, 0]


def test_gray_jpegs_become_colour(tmp_path):
    write_jpeg_npz(tmp_path / "j.npz", striped_images(4, 2)[0][..., 0], np.array([0, 1, 0, 1]))
    assert load_dataset("j", tmp_path).x_train.shape == (4, 32, 32, 3)


def test_broken_jpeg_is_left_out_with_its_label_and_named_by_its_place(tmp_path):
    images, labels = striped_images(3, 2)
    second = jpegs(images)[1][1]

    def damage(blob):
        blob = blob.copy()
        blob[second : second + 20] = 0
        return blob

    write_jpeg_npz(tmp_path / "j.npz", images, labels)
    whole = load_dataset("j", tmp_path)
    write_jpeg_npz(tmp_path / "j.npz", images, labels, damage)
    with pytest.warns(DataWarning, match="j: 2 of 6 images .* are left out: train image 1, test image 1"):
        read = load_dataset("j", tmp_path)
    assert (read.y_train.tolist(), read.y_test.tolist()) == ([0, 0], [0, 0])
    assert np.array_equal(read.x_train, whole.x_train[[0, 2]])
    write_jpeg_npz(tmp_path / "j.npz", images, labels, np.zeros_like)
    with pytest.raises(DataError, match="none of its 3 JPEG files can be read"):
        load_dataset("j", tmp_path)


X, Y = striped_images(6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": np.array([{"a": 1}] * 6, dtype=object)}, "pickled"),
        ({"y_train": np.array(list("abcabc"), dtype=object)}, "pickled"),
        ({"y_train": None}, r"missing \['y_train'\]"),
        ({"x_test": None}, "expected x_test"),
        ({"x_train": X.astype(np.float32) / 255}, r"train images must be uint8 .* got float32"),
        ({"x_train": X.transpose(0, 3, 1, 2)}, r"\[N, H, W, 3\], got uint8 \[6, 3, 32, 32\]"),
        ({"y_train": Y[:4]}, "6 train images but 4 labels"),
        ({"y_test": Y - 1}, r"test labels must lie in 0\.\.2, got -1\.\.1"),
        ({"class_names": np.array(["a", "b"])}, r"train labels must lie in 0\.\.1, got 0\.\.2"),
        ({"y_test": np.array(list("012012"))}, "y_test must be numbers of classes, got <U1"),
        ({"y_train": np.where(Y == 0, np.nan, Y)}, "y_train must be whole numbers of classes .* got nan"),
        ({"y_test": Y + 0.5}, r"y_test must be whole numbers of classes .* got 0\.5"),
        ({"y_train": Y.astype(np.uint64) + 2**63}, "below 1000000, got 9223372036854775808"),
        ({"y_test": np.where(Y == 0, np.inf, Y)}, "got inf. Number the classes from 0"),
        ({"class_names": np.array("a,b,c")}, r"class_names must be a list \[K\] of names, got a,b,c"),
        ({"y_train": Y * 0, "y_test": Y * 0}, "at least 2"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "no training image"),
    ],
)
def test_wrong_npz_is_refused_with_the_cause(tmp_path, arrays, words):
    arrays = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y} | arrays
    np.savez(tmp_path / "wrong.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(DataError, match=words) as error:
        load_dataset("wrong", tmp_path)
    assert "wrong" in str(error.value)


@pytest.mark.parametrize("damage", ["text", "cut", "damaged"])
def test_broken_npz_is_named(tmp_path, damage):
    write_npz(tmp_path / "b.npz", striped_dataset())
    whole = (tmp_path / "b.npz").read_bytes()
    middle = len(whole) // 2
    contents = {
        "text": b"not an archive",
        "cut": whole[:middle],
        "damaged": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }
    (tmp_path / "b.npz").write_bytes(contents[damage])
    with pytest.raises(DataError, match=r"b\.npz is not a readable"):
        load_dataset("b", tmp_path)


@pytest.mark.parametrize(
    "damage", ["empty", "npy", "jpeg_sizes", "offsets", "scalar", "columns", "compressed", "encrypted", "unknown"]
)
def test_rarer_broken_npz_is_named(tmp_path, damage):
    path = tmp_path / "b.npz"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage in ("offsets", "scalar", "columns"):
        write_jpeg_npz(path, X[:2], Y[:2])
        arrays = dict(np.load(path))
        offsets = arrays["x_train_off"]
        wrong = {"offsets": offsets.astype(float), "scalar": offsets[1], "columns": offsets[:, None]}
        np.savez(path, **arrays | {"x_train_off": wrong[damage]})
    elif damage in ("encrypted", "unknown"):
        write_npz(path, striped_dataset())
        place, value = {"encrypted": (8, 1), "unknown": (10, 99)}[damage]  # a flag, and how it is compressed
        whole = bytearray(path.read_bytes())
        whole[whole.index(b"PK\1\2") + place] = value
        whole[place - 2] = value  # of the first file's own header
        path.write_bytes(whole)
    elif damage == "compressed":
        np.savez_compressed(path, x_train=X, y_train=Y, x_test=X, y_test=Y)
        whole = bytearray(path.read_bytes())
        whole[100:200] = bytes(100)
        path.write_bytes(whole)
    else:
        write_jpeg_npz(path, [X[0], X[1, :16, :16]], Y[:2])
    with pytest.raises(DataError, match=r"b\.npz"):
        load_dataset("b", tmp_path)


def test_image_folder_keeps_pixels_labels_and_class_names(tmp_path):
    write_image_folder(tmp_path / "pets", classes=("ant", "bee"), count=10)
    read = load_dataset("pets", tmp_path)
    assert (read.name, read.class_names) == ("pets", ("ant", "bee"))
    for label in range(2):
        written = {x.tobytes() for x in striped_images(10, size=64, seed=label)[0]}
        train, test = ({x.tobytes() for x in x_[y == label]} for x_, y in _parts(read))
        assert train | test == written
        assert (len(train), len(test)) == (8, 2)


def test_what_is_hidden_in_an_image_folder_is_no_class_and_a_folder_has_a_name_from_inside_too(tmp_path, monkeypatch):
    write_image_folder(tmp_path / "pets", classes=("ant", "bee"), count=10)
    before = load_dataset("pets", tmp_path)
    (tmp_path / "pets" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "pets" / ".thumbnails").mkdir()
    (tmp_path / "pets" / ".thumbnails" / "0.png").write_bytes((tmp_path / "pets" / "ant" / "0.png").read_bytes())
    monkeypatch.chdir(tmp_path / "pets")
    read = load_dataset(".")
    assert (read.name, read.class_names, read.sha256) == ("pets", ("ant", "bee"), before.sha256)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hidden" / ".thumbnails").mkdir(parents=True)
    with pytest.raises(DataError, match="hidden"):
        load_dataset("hidden", tmp_path)


def _parts(dataset: ImageDataset):
    return (dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)


def test_images_without_a_test_part_are_split_the_same_every_time_unless_told(tmp_path):
    write_image_folder(tmp_path, count=10)
    first, second = load_dataset(tmp_path), load_dataset(tmp_path)
    assert all(np.array_equal(getattr(first, k), getattr(second, k)) for k in SPLITS)
    part = Part(*striped_images(30), (), "")
    assert not np.array_equal(split_by_class(part)[1].images, split_by_class(part, seed=1)[1].images)
    assert np.bincount(split_by_class(part, test_fraction=0.5)[1].labels).tolist() == [5, 5, 5]


def test_digest_follows_the_images_and_their_names(tmp_path):
    write_image_folder(tmp_path)
    digests = {load_dataset(tmp_path).sha256 for _ in range(2)}
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "00.png")
    digests.add(load_dataset(tmp_path).sha256)
    Image.new("RGB", (64, 64)).save(tmp_path / "cat" / "00.png")
    digests.add(load_dataset(tmp_path).sha256)
    assert len(digests) == 3


@pytest.mark.parametrize("part", TEST_PARTS)
def test_image_folder_with_its_own_test_part_keeps_it(tmp_path, part):
    write_image_folder(tmp_path / "train", count=4)
    write_image_folder(tmp_path / part, count=3)
    read = load_dataset(tmp_path)
    assert np.bincount(read.y_train).tolist() == [4, 4]
    assert np.bincount(read.y_test).tolist() == [3, 3]
    (tmp_path / part / "cat").rename(tmp_path / part / "cow")
    with pytest.raises(DataError, match=r"\['cat', 'cow'\]"):
        load_dataset(tmp_path)


def test_train_folder_without_a_known_test_part_is_not_taken_for_a_class(tmp_path):
    write_image_folder(tmp_path / "train")
    with pytest.raises(DataError, match="beside it is nothing; expected"):
        load_dataset(tmp_path)
    write_image_folder(tmp_path / "eval")
    with pytest.raises(DataError, match="is eval; expected a test part called test or val or valid or validation"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / "train").num_classes == 2


def test_a_class_may_be_called_train(tmp_path):
    write_image_folder(tmp_path, classes=("plane", "train"))
    assert load_dataset(tmp_path).class_names == ("plane", "train")


def test_images_of_any_shape_and_mode_are_cut_to_their_centre_square(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = (10, 20, 30)
    Image.fromarray(wide).save(tmp_path / "a" / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "b" / "tall.png")
    read = load_dataset(tmp_path)
    assert (read.x_train == (10, 20, 30)).all()
    Image.new("L", (40, 40), 7).save(tmp_path / "a" / "gray.png")
    Image.new("RGBA", (40, 40), (7, 7, 7, 255)).save(tmp_path / "a" / "rgba.png")
    assert (load_dataset(tmp_path).x_train[:2] == 7).all()


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n broken", b"", b"half"])
def test_broken_image_is_left_out_and_named(tmp_path, content):
    write_image_folder(tmp_path)
    whole = load_dataset(tmp_path)
    file = tmp_path / "dog" / "3.png"
    file.write_bytes(file.read_bytes()[:2000] if content == b"half" else content)
    with pytest.warns(DataWarning, match=r"1 of 10 images cannot be read and are left out: dog/3\.png"):
        read = load_dataset(tmp_path)
    assert read.skipped == ("dog/3.png",)
    assert np.bincount(np.concatenate([read.y_train, read.y_test])).tolist() == [5, 4]
    assert read.sha256 != whole.sha256
    assert {x.tobytes() for x in read.x_train} <= {x.tobytes() for x in (*whole.x_train, *whole.x_test)}


def test_folder_of_broken_images_is_refused(tmp_path):
    write_image_folder(tmp_path)
    for file in tmp_path.glob("*/*"):
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"all 10 are unreadable, the first cat/0\.png"):
        load_dataset(tmp_path)


def test_large_folder_gives_so_many_images_at_random_at_the_size_that_is_asked_for(tmp_path):
    write_image_folder(tmp_path, count=30)
    read = load_dataset(tmp_path, size=48, max_images=20)
    assert len(read.x_train) + len(read.x_test) == 20
    assert read.x_train.shape[1:] == (48, 48, 3)
    assert set(read.y_train) == {0, 1}
    assert np.array_equal(read.x_train, load_dataset(tmp_path, size=48, max_images=20).x_train)


def test_large_jpegs_keep_their_look(tmp_path):
    """They are decoded at a part of their size."""
    for name, value in (("a", 30), ("b", 200)):
        (tmp_path / name).mkdir()
        ramp = np.linspace(0, 50, 1000, dtype=np.uint8)[:, None, None] + np.full((1, 1000, 3), value, np.uint8)
        Image.fromarray(ramp).save(tmp_path / name / "0.jpg", quality=95)
    read = load_dataset(tmp_path, size=32)
    rows = np.linspace(0, 50, 32)[:, None, None]
    for image, value in zip(read.x_train, (30, 200), strict=True):
        assert np.abs(image - (value + rows)).max() < 4


def test_folder_of_one_class_or_none_is_refused(tmp_path):
    write_image_folder(tmp_path / "lone", classes=("cat",))
    with pytest.raises(DataError, match="'lone' has 1 class; at least 2"):
        load_dataset(tmp_path / "lone")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="one folder of images for each class"):
        load_dataset(tmp_path / "none")
    write_image_folder(tmp_path / "hole")
    (tmp_path / "hole" / "cow").mkdir()
    with pytest.raises(DataError, match="cow"):
        load_dataset(tmp_path / "hole")


def test_names_of_a_data_folder_are_its_files_and_folders_of_folders(tmp_path):
    write_npz(tmp_path / "stripes.npz", striped_dataset())
    write_image_folder(tmp_path / "pets")
    (tmp_path / "empty").mkdir()
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)  # of torchvision
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no dataset")
    assert dataset_names(tmp_path) == ["pets", "stripes"]
    with pytest.raises(DataError, match="did you mean 'stripes'"):
        load_dataset("stripe", tmp_path)
    with pytest.raises(DataError, match="did you mean 'digits'"):
        load_dataset("digit")
    with pytest.raises(DataError, match="No data folder"):
        dataset_names(tmp_path / "nowhere")


def test_digits_are_embedded_and_their_parts_do_not_meet():
    digits = load_dataset("digits")
    assert digits.class_names == tuple("0123456789")
    assert len(digits.y_train) + len(digits.y_test) == 1797
    train, test = ({x.tobytes() for x in part} for part in (digits.x_train, digits.x_test))
    assert not train & test
    assert digits.x_train.max() == 255
    assert np.bincount(digits.y_test).min() > 50


def test_resizing_keeps_an_image_of_that_size_and_the_mean_of_others():
    x, _ = striped_images(3, size=32)
    assert torch.equal(resize_images(x, 32).permute(0, 2, 3, 1), torch.from_numpy(x))
    for size in (16, 48):
        resized = resize_images(x, size)
        assert (resized.shape, resized.dtype) == ((3, 3, size, size), torch.uint8)
        assert abs(resized.float().mean() - x.mean()) < 1


def test_resizing_many_images_is_resizing_each():
    x = np.random.default_rng(0).integers(0, 256, (1030, 4, 4, 3), dtype=np.uint8)
    every = resize_images(x, 6)
    assert torch.equal(every[[0, 1023, 1024, 1029]], resize_images(x[[0, 1023, 1024, 1029]], 6))


def test_normalized_images_have_the_pixels_of_torchvisions_transform():
    x = resize_images(striped_images(4)[0], 32)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    shift, spread = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    before = x.clone()
    torch.testing.assert_close(normalize_images(x, mean, std), (x / 255 - shift) / spread, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)
