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
from pretrained_generators.training import train as training
from pretrained_generators.training.recipe import GeneratorRecipe
from zoo_builder import pretrain
from zoo_builder.errors import ZooError
from zoo_builder.recipe import read_recipe
from zoo_builder.store import Zoo

ZOO_RECIPE = """
size = 32
support = 24
held_out = ["secret"]
[trunk]
steps = 2
batch_size = 16
[branch]
steps = 2
batch_size = 16
[finetune]
steps = 1
batch_size = 16
[[groups]]
name = "all"
datasets = ["stripes", "blobs"]
domains = ["plain", "invert", "gray", "rotate"]
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
steps = 60
batch_size = 2
[encoder]
width = 16
embedding = 8
[encoder_training]
steps = 60
batch_size = 4
[diffusion]
width = 16
depth = 1
[diffusion_training]
steps = 60
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


def test_a_lost_entry_comes_back_with_equal_bits_and_the_rest_is_kept(work, zoo):
    entries = list(zoo.entries())
    assert len(entries) == 1 + 2 * (4 + 1)
    lost = next(e for e in entries if e.task["kind"] == "branch")
    before, times = load_file(lost.path), {e.id: e.path.stat().st_mtime_ns for e in entries}
    lost.path.unlink()
    build(work)
    after = load_file(lost.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert {e.id: e.path.stat().st_mtime_ns for e in entries if e.id != lost.id} == {
        k: v for k, v in times.items() if k != lost.id
    }
    assert any(before[k].abs().max() > 0 for k in before if k.startswith("delta/"))


def test_a_failing_task_is_recorded_and_the_others_go_on(work, tmp_path):
    """A dataset whose test images are gone cannot be scored."""
    data = tmp_path / "data"
    data.mkdir()
    write_dataset(data / "stripes.npz", 0)
    arrays = dict(np.load(data / "stripes.npz"))
    arrays |= {"x_train": arrays["x_train"][:1], "y_train": arrays["y_train"][:1]}
    np.savez(data / "blobs.npz", **arrays)
    recipe = tmp_path / "zoo.toml"
    groups = ZOO_RECIPE.replace('["stripes", "blobs"]', '["stripes"]').replace('"all"', '"good"')
    recipe.write_text(groups + '[[groups]]\nname = "bad"\ndatasets = ["blobs"]\n')
    args = ("--recipe", recipe, "--data", data, "--base", work / "base.safetensors", "--out", tmp_path / "zoo")
    result = CliRunner().invoke(app, [str(a) for a in ("zoo", "build", *args)])
    assert result.exit_code == 1
    zoo = Zoo.open(tmp_path / "zoo")
    assert any("bad" in task for task in zoo.failures())
    assert any(e.task["group"] == "good" for e in zoo.entries())


def test_held_out_dataset_is_refused(work, tmp_path):
    recipe = tmp_path / "leak.toml"
    recipe.write_text(ZOO_RECIPE.replace('"blobs"]', '"secret"]'))
    args = ("--recipe", recipe, "--data", work / "data", "--base", work / "base.safetensors", "--out", tmp_path / "z")
    result = CliRunner().invoke(app, [str(a) for a in ("zoo", "build", *args)])
    assert result.exit_code == 1
    assert "secret" in result.output
    assert not (tmp_path / "z").exists()


def test_a_zoo_of_another_base_is_not_mixed_in(work, zoo):
    other = work / "other.safetensors"
    data = work / "data"
    run("zoo", "base", "--data", data, "--dataset", "blobs", "--epochs", 1, "--size", 32, "--out", other, "--seed", 1)
    args = ("--recipe", work / "zoo.toml", "--data", data, "--base", other, "--out", zoo.path)
    result = CliRunner().invoke(app, [str(a) for a in ("zoo", "build", *args)])
    assert result.exit_code == 1
    assert "another base" in result.output


def test_damaged_entry_is_named(zoo, tmp_path):
    entry = next(zoo.entries())
    broken = tmp_path / "entries"
    broken.mkdir()
    (tmp_path / "zoo.json").write_bytes((zoo.path / "zoo.json").read_bytes())
    (broken / entry.path.name).write_bytes(entry.path.read_bytes()[:1000])
    with pytest.raises(ZooError, match=entry.id):
        list(Zoo.open(tmp_path).entries())


def test_trained_bundle_loads_and_says_what_it_was_trained_on(bundle_path):
    config = load_bundle(bundle_path).config
    assert {t.name for t in config.trained_on} == {"stripes", "blobs"}
    assert config.held_out == ("secret",)
    assert {"reconstruction_gain_original", "sampling_gain_original", "compression"} <= config.measured.keys()
    card = (bundle_path / "README.md").read_text()
    assert "stripes" in card
    assert "secret" in card
    assert not (bundle_path / "training").exists()


@pytest.mark.parametrize("stage", ["vae", "encoder", "diffusion"])
def test_interrupted_training_resumes_to_equal_bits(stage, work, zoo, bundle_path, tmp_path, monkeypatch):
    """Ctrl-C after a stage's first checkpoint (step 50 of 60), then the same call again."""
    recipe = read_recipe(work / "generator.toml", GeneratorRecipe, "pretrained_generators")
    real = training.train_vae.__globals__["train_stage"]
    module = f"pretrained_generators.training.{stage}.train_stage"

    def interrupted(name, trained, settings, loss, folder, seed):
        calls = []

        def until_55(generator):
            calls.append(None)
            if len(calls) == 55:
                raise KeyboardInterrupt
            return loss(generator)

        real(name, trained, settings, until_55, folder, seed)

    with monkeypatch.context() as patch:
        patch.setattr(module, interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train_generator(zoo, recipe, tmp_path)
    assert (tmp_path / "training" / f"{stage}.resume").exists()
    training.train_generator(zoo, recipe, tmp_path)
    whole, resumed = (load_file(p / "generator.safetensors") for p in (bundle_path, tmp_path))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_init_writes_weights_that_timm_loads(work, bundle_path, tmp_path):
    out = tmp_path / "weights.safetensors"
    data = work / "data" / "secret.npz"
    args = ("--data", data, "--bundle", bundle_path, "--out", out, "--size", 32, "--candidates", 2)
    assert "generated_1" in run("init", "test_resnet", *args)
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(out))
    written = load_file(out)
    assert model.state_dict().keys() == written.keys()
    assert all(torch.equal(v, written[k]) for k, v in model.state_dict().items())


def test_pretraining_interrupted_after_an_epoch_resumes_to_equal_bits(work, tmp_path, monkeypatch):
    from zoo_builder.datasets import load_dataset

    dataset = load_dataset("blobs", work / "data")
    config = pretrain.PretrainConfig(size=32, epochs=2, batch_size=16)
    pretrain.pretrain(dataset, config, tmp_path / "whole.safetensors")
    save = pretrain.save_checkpoint

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(dataset, config, tmp_path / "parts.safetensors")
    pretrain.pretrain(dataset, config, tmp_path / "parts.safetensors")
    whole, parts = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
