"""Datasets of other sources than a folder: torchvision's, the Hub's and those of plugins."""

import gzip
import io
import json
import re
import struct
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from tests.zoo_builder.synthetic import striped_dataset, striped_images, write_image_folder
from zoo_builder.datasets import load_dataset, plugin_names, registry
from zoo_builder.errors import DataError, DataWarning


def write_idx(path, array):
    """The format of MNIST: a magic number, the sizes, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root):
    parts = {}
    for seed, part in enumerate(("train", "t10k")):
        x, y = striped_images(40 - 20 * seed, classes=3, size=28, seed=seed)
        write_idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", x[..., 0])
        write_idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", y)
        parts[part] = x[..., 0], y
    return parts


def test_torchvision_dataset_with_parts_is_read_from_disk(tmp_path):
    parts = write_mnist(tmp_path)
    read = load_dataset("torchvision:MNIST", tmp_path, size=28)
    assert read.name == "torchvision:MNIST"
    assert read.num_classes == 10
    for x, y, (images, labels) in zip(
        (read.x_train, read.x_test), (read.y_train, read.y_test), parts.values(), strict=True
    ):
        assert np.array_equal(x[..., 0], images)
        assert np.array_equal(y, labels)
    (tmp_path / "datasets.toml").write_text('["torchvision:MNIST"]\nlicence = "CC BY-SA 3.0"\n')
    assert load_dataset("torchvision:MNIST", tmp_path).licence == "CC BY-SA 3.0"
    assert load_dataset("torchvision:MNIST", tmp_path, size=28).sha256 == read.sha256


def test_torchvision_dataset_without_parts_is_split(tmp_path):
    write_image_folder(tmp_path / "eurosat" / "2750", classes=("Forest", "River"), count=10)
    read = load_dataset("torchvision:EuroSAT", tmp_path)
    assert read.class_names == ("Forest", "River")
    assert np.bincount(read.y_train).tolist() == [8, 8]
    assert np.bincount(read.y_test).tolist() == [2, 2]


def test_torchvision_dataset_with_named_splits_and_an_argument(tmp_path):
    for split, count in (("train", 6), ("val", 4)):
        write_image_folder(tmp_path / "imagenette2-160" / split, classes=("n01440764", "n02102040"), count=count)
    for file in tmp_path.glob("*/*/*/*.png"):
        file.rename(file.with_suffix(".JPEG"))
    read = load_dataset("torchvision:Imagenette?size=160px", tmp_path)
    assert (len(read.y_train), len(read.y_test)) == (12, 8)
    assert read.class_names[0].startswith("tench")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MNISTT", "did you mean 'MNIST'"),
        ("MNIST", r"cannot be read in .*\(--download\)"),
        ("DTD?partition=2", "DTD cannot be read in"),  # and does not refuse the number
        ("FakeData", "cannot be made of a folder"),
        ("EMNIST", r"EMNIST\?split=balanced"),
        ("_VisionDataset", "no dataset"),
        ("SVHN?split=extra", "is given split by this library: leave that out"),
        ("CIFAR10?train=no", "is given train by"),
        ("CIFAR10?download=yes", "is given download by"),
        ("EMNIST?split=bogus", r"EMNIST cannot be made with .*'bogus'"),
        ("Imagenette?size=3px", r"none of the splits trainval.* cannot be made with .*'3px'"),
    ],
)
def test_torchvision_dataset_that_cannot_be_used_is_refused(tmp_path, name, words):
    with pytest.raises(DataError, match=words):
        load_dataset(f"torchvision:{name}", tmp_path)


def test_torchvision_dataset_of_other_than_images_with_a_class_is_refused(tmp_path):
    (tmp_path / "Kitti" / "raw" / "training" / "image_2").mkdir(parents=True)
    (tmp_path / "Kitti" / "raw" / "training" / "label_2").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "Kitti" / "raw" / "training" / "image_2" / "0.png")
    (tmp_path / "Kitti" / "raw" / "training" / "label_2" / "0.txt").write_text("")
    (tmp_path / "Kitti" / "raw" / "testing" / "image_2").mkdir(parents=True)
    with pytest.raises(DataError, match="with list; expected an image"):
        load_dataset("torchvision:Kitti", tmp_path)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder, parts, label="label", features=True, **more):
    """As the Hub stores image datasets: one file a split, PNG bytes in a struct, class names in the metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in parts.items():
        rows = [x if x is None else {"bytes": x if isinstance(x, bytes) else png(x), "path": None} for x in images]
        table = pa.table({"image": rows, label: labels, **{k: v[: len(rows)] for k, v in more.items()}})
        if features:
            kinds = {"image": {"_type": "Image"}, label: {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
        pyarrow.parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet")


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))


PARTS = {"train": striped_images(30, size=32), "test": striped_images(12, size=32, seed=1)}


def test_parquet_folder_is_read_with_its_class_names(tmp_path):
    write_parquet(tmp_path / "bands", PARTS)
    (tmp_path / "bands" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    read = load_dataset("hf:bands", tmp_path, size=32)
    assert (read.name, read.class_names, read.licence) == ("hf:bands", ("a", "b", "c"), "cc-by-4.0")
    assert np.array_equal(read.x_train, PARTS["train"][0])
    assert np.array_equal(read.y_train, PARTS["train"][1])
    assert np.array_equal(read.x_test, PARTS["test"][0])
    assert load_dataset(f"hf:{tmp_path / 'bands'}", size=32).sha256 == read.sha256


def test_parquet_without_test_part_is_split_and_broken_images_are_named(tmp_path):
    images = [*PARTS["train"][0]]
    images[4], images[7] = b"broken", None
    write_parquet(tmp_path / "bands", {"train": (images, PARTS["train"][1])})
    with pytest.warns(DataWarning, match="2 of 30 images .* left out: train image 4, train image 7"):
        read = load_dataset("hf:bands", tmp_path)
    assert len(read.x_train) + len(read.x_test) == 28


def test_label_column_may_be_named_and_hold_names(tmp_path):
    kinds = ["cat", "dog", "cow"]
    parts = {"train": (PARTS["train"][0], [kinds[i] for i in PARTS["train"][1]])}
    write_parquet(tmp_path / "pets", parts, label="kind", features=False, colour=["red"] * 30)
    with pytest.raises(DataError, match=r"which column is the label.*pets\?label=COLUMN"):
        load_dataset("hf:pets", tmp_path)
    read = load_dataset("hf:pets?label=kind&image=image", tmp_path)
    assert read.class_names == ("cat", "cow", "dog")
    with pytest.raises(DataError, match="did you mean 'kind'"):
        load_dataset("hf:pets?label=kinds", tmp_path)
    with pytest.raises(DataError, match=r"unknown \['labels'\]"):
        load_dataset("hf:pets?labels=kind", tmp_path)


def named_parts(**labels):
    """Parts of images whose top left pixel tells which class was meant."""
    images = {name: np.full((8, 8, 3), 40 * i, np.uint8) for i, name in enumerate(("ant", "bee", "cat", 2, 11, None))}
    return {part: ([images[name] for name in names], names) for part, names in labels.items()}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["ant", "bee", "cat", "ant"], ["bee", "cat"]),  # without the first class
        (["ant", "bee"], ["cat", "ant"]),  # with one that training lacks
        ([11, 2, 11], [11]),
        (["ant", "bee", None], [None, "bee"]),
    ],
)
def test_classes_that_a_split_lacks_number_no_other_anew(tmp_path, train, test):
    write_parquet(tmp_path / "pets", named_parts(train=train, test=test), features=False)
    read = load_dataset("hf:pets", tmp_path, size=8)
    known = sorted({*train, *test} - {None})
    assert read.class_names == tuple(map(str, known))
    for labels, wanted in ((read.y_train, train), (read.y_test, test)):
        assert [known[label] for label in labels] == [name for name in wanted if name is not None]
    (images, _) = named_parts(test=[name for name in test if name is not None])["test"]
    assert np.array_equal(read.x_test, images)


def test_unlabelled_test_part_gives_way_to_one_with_labels(tmp_path):
    parts = PARTS | {"validation": PARTS["test"], "test": (PARTS["test"][0], [-1] * 12)}
    write_parquet(tmp_path / "bands", parts)
    read = load_dataset("hf:bands", tmp_path, size=32)
    assert np.array_equal(read.y_test, PARTS["test"][1])
    write_parquet(tmp_path / "numbers", parts, features=False)
    assert np.array_equal(load_dataset("hf:numbers", tmp_path, size=32).y_test, PARTS["test"][1])
    halves = ([*PARTS["train"][0]], [-1, 1] * 15)  # -1 is a class here
    write_parquet(tmp_path / "signs", {"train": halves}, features=False)
    assert load_dataset("hf:signs", tmp_path).class_names == ("-1", "1")


def test_columns_of_another_kind_and_a_broken_card_are_refused(tmp_path):
    write_parquet(tmp_path / "bands", PARTS)
    with pytest.raises(DataError, match=r"'label' holds ClassLabel.*expected images.*bands\?image=COLUMN"):
        load_dataset("hf:bands?image=label", tmp_path)
    with pytest.raises(DataError, match=r"'image' holds .*expected numbers or names.*bands\?label=COLUMN"):
        load_dataset("hf:bands?label=image", tmp_path)
    (tmp_path / "bands" / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(DataError, match=r"hf:bands has a card, README\.md, whose YAML cannot be read"):
        load_dataset("hf:bands", tmp_path)


def test_hub_dataset_must_be_pinned_and_is_not_fetched_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="must be pinned"):
        load_dataset("hf:org/name", tmp_path)
    with pytest.raises(DataError, match="not in the cache"):
        load_dataset("hf:org/name@0123456789abcdef0123456789abcdef01234567", tmp_path)


def test_folder_that_is_no_parquet_dataset_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="hf:none is not a dataset of Parquet files"):
        load_dataset("hf:none", tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train-0.parquet").write_bytes(gzip.compress(b"no parquet"))
    with pytest.raises(DataError, match="hf:bad is not a dataset of Parquet files"):
        load_dataset("hf:bad", tmp_path)


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'd2nwg-init\[zoo\]'"):
        load_dataset("hf:org/name@abc")


@pytest.mark.parametrize("name", ["train.pkl", "bands.py"])
def test_folder_with_files_that_could_run_is_refused(tmp_path, name):
    write_parquet(tmp_path / "bands", PARTS)
    (tmp_path / "bands" / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"hf:bands holds {name}"):
        load_dataset("hf:bands", tmp_path)


@pytest.mark.parametrize(
    "path", ["{here}/other.parquet", "../other.parquet", "../[o]ther.parquet", "hf://datasets/org/name/x.parquet"]
)
@pytest.mark.parametrize(
    "written", ["data_files: '{}'", "data_files: [{{split: train, path: [train-*, '{}']}}]", "data_dir: '{}'"]
)
def test_a_card_takes_no_data_from_elsewhere(tmp_path, path, written):
    write_parquet(tmp_path / "bands", PARTS)
    write_parquet(tmp_path, {"train": PARTS["train"]})
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "other.parquet")
    path = path.format(here=tmp_path)
    card = f"---\nconfigs:\n- config_name: default\n  {written.format(path)}\n---\n"
    (tmp_path / "bands" / "README.md").write_text(card)
    with pytest.raises(DataError, match=f"hf:bands has a card that takes data from {re.escape(repr(path))}"):
        load_dataset("hf:bands", tmp_path)


def test_a_card_says_which_of_its_files_are_which_part(tmp_path):
    write_parquet(tmp_path / "bands" / "data", {"one": PARTS["train"], "two": PARTS["test"]})
    files = "[{split: train, path: data/one-*}, {split: test, path: [data/two-*]}]"
    card = f"---\nlicense: [mit, cc0-1.0]\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n"
    (tmp_path / "bands" / "README.md").write_text(card)
    read = load_dataset("hf:bands", tmp_path, size=32)
    assert np.array_equal(read.x_test, PARTS["test"][0])
    assert read.licence == "mit, cc0-1.0"


class Point:
    name, value = "stripes", "somewhere:stripes"

    def load(self):
        return lambda size, max_images, download: striped_dataset("whatever", train=size)


def test_plugin_is_asked_by_its_name(monkeypatch):
    points = [Point()]
    monkeypatch.setattr(registry, "entry_points", lambda group, name="stripes": [p for p in points if p.name == name])
    assert plugin_names() == ["plugin:stripes"]
    read = load_dataset("plugin:stripes", size=33)
    assert (read.name, len(read.x_train)) == ("plugin:stripes", 33)
    with pytest.raises(DataError, match="did you mean 'plugin:stripes'"):
        load_dataset("plugin:stripe")
    monkeypatch.setattr(Point, "load", lambda self: lambda **_: "images")
    with pytest.raises(DataError, match="gave a str, expected an ImageDataset"):
        load_dataset("plugin:stripes")


@pytest.mark.parametrize("broken", ["load", "call"])
def test_plugin_that_breaks_is_named(monkeypatch, broken):
    def fall(*_, **__):
        raise ModuleNotFoundError("No module named 'somewhere'")

    monkeypatch.setattr(registry, "entry_points", lambda group, name: [Point()])
    monkeypatch.setattr(Point, "load", fall if broken == "load" else lambda self: fall)
    with pytest.raises(DataError, match=r"plugin:stripes \(somewhere:stripes\) cannot be loaded .*No module"):
        load_dataset("plugin:stripes")
