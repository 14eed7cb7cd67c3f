import json

import numpy as np
import pytest

from tests.cli.conftest import fail, run, succeed, write_image_folder
from tests.zoo_builder.synthetic import striped_dataset, write_npz
from zoo_builder.datasets import load_dataset

RECIPE = 'held_out = ["secret"]\nplans = []\n'


@pytest.fixture
def data(tmp_path):
    write_npz(tmp_path / "bands.npz", striped_dataset(seed=1))
    write_npz(tmp_path / "secret.npz", striped_dataset(seed=2))
    folder = write_image_folder(tmp_path / "insects", count=30)
    (folder / "ant" / "zzz.png").write_bytes(b"broken")
    (tmp_path / "datasets.toml").write_text('[insects]\nlicence = "CC0"\n')
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


@pytest.mark.filterwarnings("always:insects")
def test_broken_images_are_a_message_and_no_trace(data):
    result = run("zoo", "datasets", "insects", "--data", data)
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert said.startswith("insects: 1 of 31 images cannot be read and are left out: ant/zzz.png")
    assert "Warning" not in said


@pytest.mark.filterwarnings("ignore:insects")
def test_every_dataset_is_told_with_its_size_licence_hash_and_broken_images(data):
    told = json.loads(succeed("zoo", "datasets", "--data", data, "--recipe", data / "recipe.toml", "--json"))
    assert told["leaks"] == []
    found = {d["name"]: d for d in told["datasets"]}
    assert found.keys() == {"bands", "insects", "secret"}
    assert [d["name"] for d in told["datasets"] if d["held_out"]] == ["secret"]
    insects, read = found["insects"], load_dataset("insects", data)
    assert insects["broken"] == ["ant/zzz.png"]
    assert (insects["classes"], insects["train"], insects["test"]) == (3, 24, 6)
    assert (insects["licence"], insects["pixels"], insects["sha256"]) == ("CC0", 64, read.sha256)
    text = succeed("zoo", "datasets", "bands", "secret", "--data", data, "--recipe", data / "recipe.toml")
    assert "bands" in text
    assert "insects" not in text
    assert "No held-out image" in text


def test_leaks_are_told(data):
    leaky = striped_dataset(seed=1)
    secret = striped_dataset(seed=2)
    leaky.x_train[:7] = secret.x_test[:7]
    np.savez(data / "bands.npz", **{k: getattr(leaky, k) for k in ("x_train", "y_train", "x_test", "y_test")})
    arguments = ("zoo", "datasets", "bands", "--data", data)
    assert "7 images of bands are in secret (exact)" in succeed(*arguments, "--recipe", data / "recipe.toml")
    assert "are in" not in succeed(*arguments)


def test_held_out_datasets_that_are_not_there_are_told_and_not_taken_for_absent_images(data):
    (data / "recipe.toml").write_text('held_out = ["elsewhere", "secret"]\nplans = []\n')
    arguments = ("zoo", "datasets", "bands", "--data", data, "--recipe", data / "recipe.toml")
    text = " ".join(succeed(*arguments).split())
    assert "No held-out image was found in the other datasets." in text
    assert "not there to be looked for in the others: elsewhere." in text
    assert json.loads(succeed(*arguments, "--json"))["not_looked_for"] == ["elsewhere"]
    (data / "secret.npz").unlink()
    text = " ".join(succeed(*arguments).split())
    assert "No held-out image" not in text
    assert "in the others: elsewhere, secret." in text


def test_unknown_name_is_an_error(data):
    assert "did you mean 'bands'" in fail("zoo", "datasets", "band", "--data", data)


@pytest.mark.filterwarnings("ignore:insects")
def test_a_broken_file_does_not_hide_the_others(data):
    (data / "apples.npz").write_bytes(b"broken")
    arrays = dict(np.load(data / "bands.npz"))
    np.savez(data / "pears.npz", **arrays | {"y_train": arrays["y_train"] + 0.5})
    assert "2 of 5 cannot be read" in fail("zoo", "datasets", "--data", data)
    result = run("zoo", "datasets", "--data", data, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [d["name"] for d in told["datasets"]] == ["bands", "insects", "secret"]
    assert told["unreadable"].keys() == {"apples", "pears"}
    assert "apples.npz is not a readable" in told["unreadable"]["apples"]
    assert "bands" in run("zoo", "datasets", "--data", data).stdout
