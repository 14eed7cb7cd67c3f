"""The chain of the command line on tiny made-up datasets: zoo base -> zoo build -> generator train -> init."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from d2nwg_init.cli import app
from pretrained_generators.bundle import load_bundle
from zoo_builder.store import Zoo

ZOO_RECIPE = """
size = 32
support = 24
held_out = ["secret"]
[[plans]]
name = "trunk"
kind = "episodic"
over = "cluster"
training = { steps = 2, batch_size = 16, learning_rates = [0.02] }
[[plans]]
name = "branch"
kind = "episodic"
start = "trunk"
own_share = 0.5
domains = ["plain", "invert", "gray", "rotate"]
training = { steps = 2, batch_size = 16, rate_of_start = 0.5 }
"""
GENERATOR_RECIPE = """
name = "tiny"
chunk = 8192
held_back = 2
[vae]
latent = 3
width = 16
depth = 1
[vae_training]
steps = 2
batch_size = 2
[encoder]
width = 16
embedding = 8
[encoder_training]
steps = 2
batch_size = 4
[diffusion]
width = 16
depth = 1
[diffusion_training]
steps = 2
batch_size = 4
"""


def write_dataset(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.arange(48) % 3
    x = rng.integers(0, 90, (48, 32, 32, 3), dtype=np.uint8)
    for i, c in enumerate(y):
        x[i, :, c * 10 : c * 10 + 10] += 140
    np.savez(path, x_train=x, y_train=y, x_test=x[:24], y_test=y[:24], class_names=np.array(["a", "b", "c"]))


def run(*args) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("chain")
    (root / "data").mkdir()
    for seed, name in enumerate(("stripes", "blobs", "secret")):
        write_dataset(root / "data" / f"{name}.npz", seed)
    (root / "zoo.toml").write_text(ZOO_RECIPE)
    (root / "generator.toml").write_text(GENERATOR_RECIPE)
    base = root / "base.safetensors"
    run("zoo", "base", "--data", root / "data", "--dataset", "blobs", "--epochs", 1, "--size", 32, "--out", base)
    return root


def build(root: Path) -> Zoo:
    base, out = root / "base.safetensors", root / "zoo"
    run("zoo", "build", "--recipe", root / "zoo.toml", "--data", root / "data", "--base", base, "--out", out)
    return Zoo.open(out)


@pytest.fixture(scope="module")
def zoo(work) -> Zoo:
    return build(work)


@pytest.fixture(scope="module")
def bundle_path(work, zoo) -> Path:
    out = work / "bundle"
    run("generator", "train", "--zoo", zoo.path, "--recipe", work / "generator.toml", "--out", out)
    return out


def test_every_task_is_an_entry(zoo):
    assert [e.task.plan for e in zoo.entries()] == ["branch"] * 8 + ["trunk"]


def test_held_out_dataset_is_refused(work, tmp_path):
    recipe = tmp_path / "leak.toml"
    recipe.write_text('datasets = ["blobs", "secret"]\n' + ZOO_RECIPE)
    args = ("--recipe", recipe, "--data", work / "data", "--base", work / "base.safetensors", "--out", tmp_path / "z")
    result = CliRunner().invoke(app, [str(a) for a in ("zoo", "build", *args)])
    assert result.exit_code == 1
    assert "secret" in result.output
    assert not (tmp_path / "z").exists()


@pytest.mark.usefixtures("no_worker_processes")
def test_models_trained_at_once_make_the_same_tasks(work, zoo, tmp_path):
    args = ("--recipe", work / "zoo.toml", "--data", work / "data", "--base", work / "base.safetensors")
    run("zoo", "build", *args, "--out", tmp_path / "zoo", "--workers", 1, "--at-once", 4)
    beside = Zoo.open(tmp_path / "zoo")
    assert {e.id for e in beside.entries()} == {e.id for e in zoo.entries()}
    run("zoo", "verify", beside.path, "--data", work / "data")


def test_dry_run_names_the_tasks_and_makes_none(work, zoo):
    args = ("--recipe", work / "zoo.toml", "--data", work / "data", "--base", work / "base.safetensors")
    before = sorted(zoo.path.rglob("*"))
    output = run("zoo", "build", *args, "--out", zoo.path, "--dry-run")
    new = run("zoo", "build", *args, "--out", work / "nowhere", "--dry-run")
    assert new.splitlines()[:-1] == output.splitlines()[:-1]
    assert "9 tasks, 0 of them done" in new
    assert not (work / "nowhere").exists()
    assert all(e.id in output for e in zoo.entries())
    assert "9 tasks, 9 of them done" in output
    assert sorted(zoo.path.rglob("*")) == before


def test_trained_bundle_loads_and_says_what_it_was_trained_on(bundle_path):
    config = load_bundle(bundle_path).config
    assert {t.name for t in config.trained_on} == {"stripes", "blobs"}
    assert config.held_out == ("secret",)
    assert {"reconstruction_gain_original", "sampling_gain_original", "compression"} <= config.measured.keys()
    assert not (bundle_path / "README.md").exists()  # nothing is measured yet
    assert not (bundle_path / "training").exists()


def test_init_writes_weights_that_timm_loads(work, bundle_path, tmp_path):
    out = tmp_path / "weights.safetensors"
    data = work / "data" / "secret.npz"
    args = ("--data", data, "--bundle", bundle_path, "--out", out, "--size", 32, "--candidates", 2)
    assert "generated_1" in run("init", "test_resnet", *args)
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(out))
    written = load_file(out)
    assert model.state_dict().keys() == written.keys()
    assert all(torch.equal(v, written[k]) for k, v in model.state_dict().items())
