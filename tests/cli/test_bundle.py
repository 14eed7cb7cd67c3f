import json
import shutil

import pytest
from huggingface_hub import ModelCard

from d2nwg_init.benchmarks.results import Row, results
from pretrained_generators import bundle as bundles
from pretrained_generators.bundle import load_bundle
from tests.cli.conftest import fail, run, succeed
from tests.pretrained_generators.small import random_generator, save_random_bundle


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


def test_list_tells_the_embedded_ones_by_architecture_and_licence(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(bundles, "EMBEDDED", folder.parent)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))

    def listed(*options):
        found = json.loads(succeed("bundle", "list", "--json", *options))
        return [i["name"] for i in found if i["where"] == "embedded"]

    assert listed() == listed("--architecture", "test_resnet") == listed("--research") == ["copy"]
    assert listed("--commercial") == listed("--architecture", "resnet50") == []


def test_show_tells_what_the_config_says(folder):
    text = " ".join(succeed("bundle", "show", folder).split())
    for words in ("test_resnet, for images of 32 pixels", "stripes (4 entries, unknown)", "not allowed", "compression"):
        assert words in text
    assert json.loads(succeed("bundle", "show", folder, "--json"))["name"] == "tiny-random"


def test_card_is_written_and_everything_recorded(folder):
    (folder / "audit.svg").write_text("<svg/>")
    assert run("bundle", "verify", folder).exit_code == 1
    succeed("bundle", "card", folder)
    assert {f.name for f in load_bundle(folder).config.files} == {"README.md", "audit.svg", "generator.safetensors"}


def test_card_does_not_bless_other_weights(folder):
    save_random_bundle(folder.parent / "other", generator=random_generator(seed=1))
    shutil.copy(folder.parent / "other" / "generator.safetensors", folder)
    assert "not the file that config.json describes" in fail("bundle", "card", folder)


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


def test_diff_tells_keys_and_tensors(folder, bundle_path):
    assert succeed("bundle", "diff", folder, bundle_path).strip() == "No difference."
    generator = random_generator()
    generator.vae.mean[0, 0] += 0.25
    save_random_bundle(folder.parent / "other", name="other", generator=generator)
    found = json.loads(succeed("bundle", "diff", bundle_path, folder.parent / "other", "--json"))
    assert found == {"name": ["tiny-random", "other"], "tensor vae.mean": [0, 0.25]}


def test_pull_of_what_is_no_repository_or_into_what_is_there_is_an_error(folder):
    assert "expected ORG/NAME" in fail("bundle", "pull", "test_resnet-64")
    assert "is there already" in fail("bundle", "pull", "org/name", "--out", folder)


def results_file(folder, dataset="insects", bundle="tiny-random"):
    """As a benchmark writes it: two seeds of three methods."""
    rows = [
        Row(bundle, dataset, method, seed, "test_accuracy", 10 * seed + step + at, "%", step=step)
        for seed in (0, 1)
        for method, at in (("solved", 50.0), ("initialize", 60.0), ("generated_mean", 55.0))
        for step in (0, 10)
    ]
    rows.append(Row(bundle, dataset, "initialize", 0, "seconds_initialise", 2.5, "s"))
    path = folder.parent / "results-of-a-benchmark.json"
    path.write_text(json.dumps(results("demo", [], rows)))
    return path


def test_card_tells_committed_results_with_rivals_and_keeps_them(folder):
    succeed("bundle", "card", folder, "--results", results_file(folder))
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


def test_card_without_results_says_so(folder):
    succeed("bundle", "card", folder)
    card = ModelCard.load(folder / "README.md")
    assert "Not measured yet." in card.text
    assert card.data.eval_results is None


@pytest.mark.parametrize("other", [{"bundle": "another"}, {"dataset": "stripes"}], ids=["bundle", "trained on"])
def test_results_of_other_weights_or_of_training_data_are_refused(folder, other):
    message = fail("bundle", "card", folder, "--results", results_file(folder, **other))
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
