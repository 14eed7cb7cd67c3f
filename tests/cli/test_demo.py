import json

import pytest

from d2nwg_init.benchmarks import fine_tuning
from d2nwg_init.benchmarks.demo import METHODS, draw_curves, run_demo
from pretrained_generators.bundle import load_config
from tests.cli.conftest import ShortFineTuning, fail, run, succeed, write_image_folder

STEPS = ShortFineTuning.steps
pytestmark = pytest.mark.usefixtures("short_fine_tuning")


def demo(images, bundle_path, tmp_path, *more):
    command = ("demo", "--data", images, "--bundle", bundle_path, "--plot", tmp_path / "curves.png", "--seeds", 1)
    return succeed(*command, *more)


@pytest.fixture(scope="module")
def shown(images, bundle_path, tmp_path_factory):
    """What a demo of two seeds prints, and the folder of what it writes."""
    folder = tmp_path_factory.mktemp("shown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "FineTuning", ShortFineTuning)
        out = folder / "new" / "demo.json"
        return demo(images, bundle_path, folder, "--json", "--seeds", 2, "--out", out), folder


def test_json_holds_every_method_at_every_step(shown, bundle_path):
    report = json.loads(shown[0])
    weights = load_config(bundle_path).identity
    assert report.keys() == {
        "schema", "name", "command", "commit", "date", "machine", "versions", *weights, "data", "rows",
    }  # fmt: skip
    assert {k: report[k] for k in weights} == weights
    assert (report["schema"], report["name"]) == (1, "demo")
    assert [d["name"] for d in report["data"]] == ["insects"]
    assert len(report["data"][0]["sha256"]) == 64
    measured = {(r["method"], r["step"], r["seed"]) for r in report["rows"] if r["metric"] == "test_accuracy"}
    assert measured == {(m, step, seed) for m in METHODS for step in STEPS for seed in (0, 1)}
    assert {r["bundle"] for r in report["rows"]} == {"tiny-random"}


def test_curves_are_a_png(shown):
    assert (shown[1] / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_curves_are_a_png_by_any_name_and_the_results_do_not_wait_for_them(images, bundle_path, tmp_path, monkeypatch):
    out, before = tmp_path / "demo.json", []

    def draw(rows, path):
        before.append(json.loads(out.read_text())["rows"])
        draw_curves(rows, path)

    monkeypatch.setattr("d2nwg_init.benchmarks.demo.draw_curves", draw)
    curves = tmp_path / "curves.foo"
    succeed("demo", "--data", images, "--bundle", bundle_path, "--plot", curves, "--seeds", 1, "--out", out)
    assert curves.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    (rows,) = before
    assert rows


def test_what_was_measured_is_written_when_a_later_dataset_is_interrupted(images, bundle_path, tmp_path, monkeypatch):
    other = write_image_folder(tmp_path / "birds")

    def until_birds(dataset, *given, **options):
        if dataset.name == "birds":
            raise KeyboardInterrupt
        return run_demo(dataset, *given, **options)

    monkeypatch.setattr("d2nwg_init.benchmarks.demo.run_demo", until_birds)
    command = ("demo", "--data", images, "--data", other, "--bundle", bundle_path, "--seeds", 1)
    result = run(*command, "--plot", tmp_path / "curves.png", "--out", tmp_path / "demo.json")
    assert result.exit_code == 130
    report = json.loads((tmp_path / "demo.json").read_text())
    assert [d["name"] for d in report["data"]] == ["insects"]
    assert {(r["dataset"], r["method"]) for r in report["rows"]} == {("insects", m) for m in METHODS}


def test_two_datasets_of_one_name_are_refused(bundle_path, tmp_path):
    folders = [write_image_folder(tmp_path / place / "birds") for place in "ab"]
    message = fail("demo", "--data", folders[0], "--data", folders[1], "--bundle", bundle_path)
    assert "--data names 2 datasets 'birds'" in message


def test_json_is_written_to_a_file_as_well(shown):
    printed, folder = shown
    assert json.loads((folder / "new" / "demo.json").read_text()) == json.loads(printed)


def test_table_has_every_method_for_every_dataset(images, bundle_path, tmp_path):
    other = write_image_folder(tmp_path / "[red]birds", classes=("[dim]x", "y"), count=20)
    text = demo(images, bundle_path, tmp_path, "--data", other)
    assert "test_resnet on insects" in text
    assert "on [red]birds" in text  # and not in red
    for method in METHODS:
        assert text.count(f" {method} ") == 2
    assert "step 2" in text
    assert "curves.png" in text.replace("\n", "")


def test_a_bundle_without_its_base_is_refused_with_those_that_have_theirs(images):
    message = fail("demo", "--data", images, "--bundle", "squeezenet1_1-64")
    assert "leaves out the base" in message
    assert "test_resnet-64" in message
    assert "base=model" not in message  # which nobody can pass to a command


def test_a_bundle_of_the_hub_that_was_not_pulled_is_told_how_to_be(images, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "bundle pull" in fail("demo", "--data", images, "--bundle", "nobody/nothing")
