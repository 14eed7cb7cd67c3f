"""Images of any mode, in any kind of file: what becomes of their pixels, and what is told as broken."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from tests.zoo_builder.synthetic import write_image_folder
from zoo_builder.datasets import dataset_names, load_dataset
from zoo_builder.datasets.read_images import Sample, read_part
from zoo_builder.errors import DataError, DataWarning


def test_sixteen_bits_are_scaled_and_what_is_transparent_lies_on_white(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    glyph = np.zeros((64, 64, 4), np.uint8)
    glyph[16:48, 16:48, 3] = 255
    drawn = np.where(glyph[..., 3:] == 255, 0, 255).repeat(3, axis=-1)
    for name, image, file in (
        ("a", Image.fromarray(ramp), "0.png"),
        ("b", Image.fromarray(ramp), "0.tif"),
        ("c", Image.fromarray(glyph), "0.png"),
        ("d", Image.fromarray(glyph).convert("LA"), "0.png"),
        ("e", Image.fromarray(glyph).quantize(), "0.png"),
    ):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / file)
    read = load_dataset(tmp_path)
    for image in read.x_train[:2]:
        assert np.array_equal(image, (ramp >> 8)[..., None].repeat(3, axis=-1))
    for image in read.x_train[2:]:
        assert np.array_equal(image, drawn)


def test_sixteen_bits_that_pillow_opens_as_whole_numbers_are_scaled_too():
    image = Image.fromarray(np.full((8, 8), 40000, np.int32))
    image.format = "PNG"
    assert (read_part(lambda i: Sample("old", 0, image), 1, 8, None).images == 40000 >> 8).all()


def test_numbers_without_a_known_range_are_broken_images_with_the_reason(tmp_path):
    write_image_folder(tmp_path)
    Image.fromarray(np.ones((64, 64), np.float32)).save(tmp_path / "dog" / "f.tif")
    Image.fromarray(np.ones((64, 64), np.int32)).save(tmp_path / "dog" / "i.tif")
    with pytest.warns(DataWarning, match="2 of 12 images cannot be read"):
        read = load_dataset(tmp_path)
    assert read.skipped == tuple(
        f"dog/{m.lower()}.tif (its mode is {m}, expected 8 or 16 bits a channel)" for m in "FI"
    )


def test_what_another_program_is_run_for_is_no_image_by_whatever_name(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: Image.new("RGB", (8, 8)).im)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    assert read_part(lambda i: Sample("evil.jpg", 0, file.getvalue()), 1, 8, None).skipped == ("evil.jpg",)
    y, offsets = np.zeros(2, np.int64), [0, len(file.getvalue()), len(file.getvalue())]
    blobs = {f"x_{part}_jpeg": np.frombuffer(file.getvalue(), np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "evil.npz", y_train=y, y_test=y, x_train_off=offsets, x_test_off=offsets, **blobs)
    with pytest.raises(DataError, match="none of its 2 JPEG files can be read"):
        load_dataset("evil", tmp_path)


def test_every_kind_of_file_that_pillow_reads_is_an_image(tmp_path):
    for name, kind in (("a", "jfif"), ("b", "gif"), ("c", "jpe"), ("d", "JP2")):
        (tmp_path / "odd" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "odd" / name / f"0.{kind}")
        (tmp_path / "odd" / name / "notes.h5").write_bytes(b"")
    assert dataset_names(tmp_path) == ["odd"]
    read = load_dataset("odd", tmp_path)
    assert (len(read.x_train), read.skipped) == (4, ())


def test_class_folder_whose_name_is_no_utf8_is_read(tmp_path):
    write_image_folder(tmp_path, classes=("dog", os.fsdecode(b"caf\xe9")))
    read = load_dataset(tmp_path)
    assert read.class_names == ("caf\\xe9", "dog")
    assert (len(read.x_train) + len(read.x_test), read.skipped) == (10, ())
