import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from d2nwg_init.benchmarks.fine_tuning import accuracy, as_tensors
from d2nwg_init.cli import app
from tests.cli.conftest import fail, run, succeed, write_image_folder
from tests.pretrained_generators.small import random_generator, same, save_random_bundle
from zoo_builder.datasets import load_dataset


def init(data, out, *more, model="test_resnet"):
    return succeed("init", model, "--data", data, "--out", out, "--size", 32, *more)


@pytest.fixture(scope="module")
def weights(images, bundle_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("init") / "new" / "weights.safetensors"
    init(images, out, "--bundle", bundle_path, "--candidates", 2)
    return out


def test_timm_loads_what_was_written(weights):
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(weights))
    assert same(model.state_dict(), load_file(weights))


def test_a_folder_is_loaded_by_timm_with_its_head_by_either_door(images, bundle_path, tmp_path, weights):
    out = tmp_path / "new" / "weights"
    init(images, out, "--bundle", bundle_path, "--candidates", 2)
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert same(model.state_dict(), load_file(weights))
    checkpoint = str(out / "model.safetensors")
    other = timm.create_model("test_resnet", num_classes=3, checkpoint_path=checkpoint)
    assert same(model.state_dict(), other.state_dict())
    assert json.loads((out / "report.json").read_text())["bundle"] == "tiny-random"


def test_loaded_model_classifies_test_images(weights, images):
    model = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(weights))
    test = as_tensors(load_dataset(images), model, 32, "test")
    assert len(test[1]) == 9
    assert accuracy(model, *test) > 80


def test_report_is_kept_in_the_file(weights):
    with safe_open(str(weights), framework="pt") as file:
        report = json.loads(file.metadata()["report"])
    assert report["schema"] == 4
    assert report["bundle"] == "tiny-random"
    assert report["chosen"] in [c["name"] for c in report["candidates"]]
    assert report["images_read"] == 36


def test_report_and_classes_are_printed(images, bundle_path, tmp_path):
    text = init(images, tmp_path / "w.safetensors", "--bundle", bundle_path, "--candidates", 1)
    for words in ("as_passed", "own_body", "generated_0", "ant, bee, cat"):
        assert words in text


def test_number_of_candidates_and_images_is_as_asked(images, bundle_path, tmp_path):
    out = tmp_path / "w.safetensors"
    init(images, out, "--bundle", bundle_path, "--candidates", 3, "--images", 20)
    with safe_open(str(out), framework="pt") as file:
        report = json.loads(file.metadata()["report"])
    assert report["images_read"] == 20
    assert sum(c["kind"] == "generated" for c in report["candidates"]) == 2  # the best of them


def test_model_without_a_bundle_gets_its_own_body_solved(images, tmp_path):
    out = tmp_path / "w.safetensors"
    text = init(images, out, model="lcnet_050")
    text = " ".join(text.split())
    assert "no embedded bundle covers" in text
    assert text.count("the body was never trained, and no bundle made up for it") == 1
    assert "--weights" in text
    model = timm.create_model("lcnet_050", num_classes=3, checkpoint_path=str(out))
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_pretrained_weights_are_taken_from_a_file(images, tmp_path):
    pretrained, out = timm.create_model("lcnet_050"), tmp_path / "w.safetensors"
    torch.nn.init.normal_(pretrained.bn1.running_mean)  # else it would count as one that was never trained
    save_file(pretrained.state_dict(), tmp_path / "pretrained.safetensors")
    text = init(images, out, "--weights", tmp_path / "pretrained.safetensors", model="lcnet_050")
    assert "never trained" not in text
    assert torch.equal(load_file(out)["conv_stem.weight"], pretrained.conv_stem.weight)  # which refining leaves


def test_a_bundle_that_leaves_its_base_out_takes_it_from_the_file(images, tmp_path):
    generator, out = random_generator(), tmp_path / "w.safetensors"
    generator.base.half().float()
    save_random_bundle(tmp_path / "bundle", generator=generator, base_source="here")
    save_file(generator.base.state_dict(), tmp_path / "base.safetensors")
    arguments = ("test_resnet", "--data", images, "--out", out, "--size", 32, "--bundle", tmp_path / "bundle")
    assert "here" in fail("init", *arguments)
    text = succeed("init", *arguments, "--candidates", 1, "--weights", tmp_path / "base.safetensors")
    assert "generated_0" in text
    assert "does not fit this model" in fail(
        "init", "lcnet_050", *arguments[1:], "--weights", tmp_path / "base.safetensors"
    )


def test_markup_in_class_names_is_printed_as_it_is(bundle_path, tmp_path):
    folder = write_image_folder(tmp_path / "[bold]data", classes=("[red]x", "[dim]y"), count=12)
    text = init(folder, tmp_path / "w.safetensors", "--bundle", bundle_path, "--candidates", 1)
    assert "[dim]y, [red]x" in text


def test_class_names_that_the_terminals_encoding_lacks_are_printed_as_far_as_it_goes(bundle_path, tmp_path):
    folder, out = write_image_folder(tmp_path / "data", classes=("ant", "日本"), count=12), tmp_path / "w.safetensors"
    arguments = ["init", "test_resnet", "--data", folder, "--out", out, "--size", 32, "--bundle", bundle_path]
    result = CliRunner(charset="cp1252").invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, repr(result.exception)
    assert "The 2 classes: ant, ??" in result.stdout
    assert out.is_file()


def test_interrupted_writing_leaves_the_old_file(images, bundle_path, tmp_path, monkeypatch):
    out = tmp_path / "w.safetensors"
    out.write_bytes(b"old")

    def write_half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo_builder.checkpoint.save_file", write_half)
    arguments = ("--data", images, "--out", out, "--size", 32, "--bundle", bundle_path, "--candidates", 1)
    assert run("init", "test_resnet", *arguments).exit_code == 130
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "torchvision:vit_b_32"])
def test_a_model_of_one_size_says_which(name, images, tmp_path):
    message = fail("init", name, "--data", images, "--out", tmp_path / "weights", "--size", 64)
    assert f"{name} takes images of 224 pixels alone. Give --size 224." in message
