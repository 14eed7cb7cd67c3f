import json
import shutil

import pytest
from huggingface_hub import ModelCard

from pretrained_generators import bundle as bundles
from pretrained_generators.bundle import TrainedOn, load_bundle, load_config
from tests.cli.conftest import fail, run, succeed, write_image_folder
from tests.pretrained_generators.small import random_generator, results_file, save_random_bundle, write_measured_card


@pytest.fixture
def folder(bundle_path, tmp_path):
    return shutil.copytree(bundle_path, tmp_path / "copy")


def test_every_embedded_bundle_is_sound():
    found = json.loads(succeed("bundle", "verify", "--json"))
    assert set(found) == set(bundles.embedded_bundles())
    assert all(f == {"sound": True, "error": None} for f in found.values())


def test_verify_names_what_is_damaged_and_goes_on(folder, bundle_path):
    (folder / "generator.safetensors").write_bytes(b"")
    result = run("bundle", "verify", folder, bundle_path)
    assert result.exit_code == 1
    assert "SHA-256" in result.output
    assert f"{bundle_path}: 1 files" in result.output


def test_a_folder_with_the_name_of_an_embedded_bundle_is_meant_where_a_folder_is(tmp_path, monkeypatch, bundle_path):
    monkeypatch.chdir(tmp_path)
    assert "No bundle in test_resnet-64" in fail("bundle", "card", "test_resnet-64", "--results", "none.json")
    assert not (tmp_path / "test_resnet-64").exists()
    shutil.copytree(bundle_path, tmp_path / "test_resnet-64")
    assert json.loads(succeed("bundle", "show", "./test_resnet-64", "--json"))["name"] == "tiny-random"
    (tmp_path / "test_resnet-64" / "generator.safetensors").write_bytes(b"")
    for words in (("push", "test_resnet-64", "org/name"), ("card", "test_resnet-64")):
        assert "not the file that config.json describes" in fail("bundle", *words)
    result = run("bundle", "verify", "./test_resnet-64")
    assert (result.exit_code, "SHA-256" in result.output) == (1, True)
    assert "No bundle './test_resnet-65'" in fail("bundle", "show", "./test_resnet-65")


def test_list_tells_the_embedded_ones_by_architecture_and_licence(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(bundles, "EMBEDDED", folder.parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))

    def listed(*options):
        found = json.loads(succeed("bundle", "list", "--json", *options))
        return [i["name"] for i in found if i["where"] == "embedded"]

    assert listed() == listed("--architecture", "test_resnet") == listed("--research") == ["copy"]
    assert listed("--commercial") == listed("--architecture", "resnet50") == []


def test_markup_in_names_is_printed_as_it_is(tmp_path, monkeypatch, folder):
    config = json.loads((folder / "config.json").read_text())
    config["generator"]["backbone"]["model"] = "[/x]:smile:"
    (tmp_path / "embedded" / "[red]y").mkdir(parents=True)
    (tmp_path / "embedded" / "[red]y" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(bundles, "EMBEDDED", tmp_path / "embedded")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("COLUMNS", "200")
    listed = succeed("bundle", "list")
    assert "[red]y" in listed
    assert "[/x]:smile:" in listed
    monkeypatch.chdir(tmp_path)
    save_random_bundle(tmp_path / "[" / "x]", name="[/z]")
    compared = succeed("bundle", "diff", folder, "[/x]")
    assert "[/x]" in compared
    assert "[/z]" in compared


def test_show_tells_what_the_config_says(folder):
    text = " ".join(succeed("bundle", "show", folder).split())
    for words in ("test_resnet, for images of 32 pixels", "stripes (4 entries, unknown)", "not allowed", "compression"):
        assert words in text
    assert json.loads(succeed("bundle", "show", folder, "--json"))["name"] == "tiny-random"


def test_recording_is_advised_for_what_can_be_recorded_alone(folder):
    (folder / "audit.svg").write_text("<svg/>")
    assert "bundle card" in run("bundle", "verify", folder).output
    succeed("bundle", "card", folder)
    (folder / "notes.txt").write_text("no part of a bundle")
    assert run("bundle", "verify", folder).output.strip().endswith("does not know. Move it elsewhere.")
    (folder / "notes.txt").unlink()
    (folder / "older.svg").mkdir()
    assert run("bundle", "verify", folder).output.strip().endswith("does not know. Move it elsewhere.")


def test_everything_is_recorded_and_without_results_there_is_no_card(folder):
    (folder / "audit.svg").write_text("<svg/>")
    (folder / "README.md").write_text("A card of results that are gone.")
    assert run("bundle", "verify", folder).exit_code == 1
    text = " ".join(succeed("bundle", "card", folder).split())
    assert "audit.svg, generator.safetensors recorded. No card was written: a model card (README.md) tells" in text
    assert "d2nwg-init demo --bundle FOLDER --out results.json" in text
    assert {f.name for f in load_bundle(folder).config.files} == {"audit.svg", "generator.safetensors"}
    assert not (folder / "README.md").exists()


def test_the_commands_that_are_named_measure_it_and_write_its_card(
    folder, images, tmp_path, monkeypatch, short_fine_tuning
):
    monkeypatch.chdir(tmp_path)
    succeed("demo", "--bundle", folder, "--out", "results.json", "--data", images, "--seeds", 1)
    assert "README.md, generator.safetensors, results.json recorded." in " ".join(
        succeed("bundle", "card", folder, "--results", "results.json").split()
    )
    kept = json.loads((folder / "results.json").read_text())
    assert kept["data"] == json.loads((tmp_path / "results.json").read_text())["data"]
    assert "| insects | step 0 |" in (folder / "README.md").read_text()
    load_bundle(folder)


def test_card_does_not_bless_other_weights(folder):
    save_random_bundle(folder.parent / "other", generator=random_generator(seed=1))
    shutil.copy(folder.parent / "other" / "generator.safetensors", folder)
    (folder / "README.md").write_text("A card.")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for more in ((), ("--results", results_file(folder.parent / "demo.json", load_config(folder)))):
        assert "not the file that config.json describes" in fail("bundle", "card", folder, *more)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_card_brings_a_bundle_of_format_1_to_the_present_one(folder):
    config = json.loads((folder / "config.json").read_text())
    [weights] = config.pop("files")
    for key in ("base_licence", "base_elsewhere", "readable_since"):
        del config[key]
    for dataset in config["trained_on"]:
        del dataset["licence"]
    (folder / "config.json").write_text(json.dumps(config | {"format": 1, "weights_sha256": weights["sha256"]}))
    before = load_bundle(folder)
    succeed("bundle", "card", folder)
    assert json.loads((folder / "config.json").read_text())["format"] == 2
    assert load_bundle(folder).config.weights_sha256 == before.config.weights_sha256 == weights["sha256"]


def test_neighbours_of_a_bundle_that_does_not_know_them_are_measured(tmp_path, images):
    datasets = ("insects", "bands")
    write_image_folder(tmp_path / "data" / "insects")
    write_image_folder(tmp_path / "data" / "bands", classes=("x", "y"))
    folder = tmp_path / "bundle"
    before = save_random_bundle(folder, trained_on=tuple(TrainedOn(name, 3) for name in datasets))
    printed = succeed("bundle", "neighbours", folder, "--data", tmp_path / "data")
    assert "insects: bands 1.00" in printed
    after = load_bundle(folder)
    assert after.generator.statistics.shape[0] == 2
    assert after.config.weights_sha256 == before.weights_sha256
    assert "bands" in fail("bundle", "neighbours", folder, "--data", images.parent)


def test_diff_tells_keys_and_tensors(folder, bundle_path):
    assert succeed("bundle", "diff", folder, bundle_path).strip() == "No difference."
    generator = random_generator()
    generator.vae.mean[0, 0] += 0.25
    save_random_bundle(folder.parent / "other", name="other", generator=generator)
    found = json.loads(succeed("bundle", "diff", bundle_path, folder.parent / "other", "--json"))
    assert found == {"name": ["tiny-random", "other"], "tensor vae.mean": [0, 0.25]}


def test_pull_of_what_is_no_repository_or_of_two_revisions_or_into_what_is_there_is_an_error(folder):
    assert "expected ORG/NAME" in fail("bundle", "pull", "test_resnet-64")
    assert "is there already" in fail("bundle", "pull", "org/name", "--out", folder)
    assert "org/name@v1 names one revision" in fail("bundle", "pull", "org/name@v1", "--revision", "v2")


def test_card_tells_committed_results_with_rivals_and_keeps_them(folder):
    succeed("bundle", "card", folder, "--results", results_file(folder.parent / "demo.json", load_config(folder)))
    card = ModelCard.load(folder / "README.md")
    assert {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results} == {
        ("insects", "solved, before any training (%)"): 55.0,
        ("insects", "generated_mean, before any training (%)"): 60.0,
        ("insects", "initialize, before any training (%)"): 65.0,
    }
    for line in (
        "| insects | step 0 | step 10 |",
        "| `initialize` | 65.0 | 75.0 |",
        "took 2.5 s on insects",
        "2 seeds",
    ):
        assert line in card.text
    text = (folder / "README.md").read_text()
    succeed("bundle", "card", folder)
    assert (folder / "README.md").read_text() == text
    assert "results.json" in {f.name for f in load_bundle(folder).config.files}


def test_card_of_results_that_are_gone_is_removed(folder):
    write_measured_card(folder)
    (folder / "results.json").unlink()
    succeed("bundle", "card", folder)
    assert [f.name for f in load_bundle(folder).config.files] == ["generator.safetensors"]
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize(
    "other",
    [{"bundle": "another"}, {"dataset": "stripes"}, {"dataset": "hf:org/Stripes@0b2714e?label=kind"}],
    ids=["bundle", "trained on", "trained on by another name"],
)
def test_results_of_other_weights_or_of_training_data_are_refused(folder, other):
    file = results_file(folder.parent / "demo.json", load_config(folder), **other)
    message = fail("bundle", "card", folder, "--results", file)
    assert "no row of `initialize` with the bundle 'tiny-random'" in message
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"rows": [1]}'])
def test_what_is_no_results_file_is_refused(folder, tmp_path, text):
    path = tmp_path / "results-of-nothing.json"
    if text is not None:
        path.write_text(text)
    assert "holds no results" in fail("bundle", "card", folder, "--results", path)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [1]}', '{"verdict": 3}'])
@pytest.mark.parametrize("name", ["results.json", "audit.json"])
def test_card_of_files_that_are_damaged_is_refused(folder, name, text):
    (folder / name).write_text(text)
    assert "cannot be read" in fail("bundle", "card", folder)
