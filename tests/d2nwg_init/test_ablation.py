"""bench ablate: every choice is measured, kept, and is not the same as leaving all as it is."""

import json

import pytest
from typer.testing import CliRunner

from d2nwg_init.benchmarks import ablation, results
from d2nwg_init.benchmarks.ablation import AS_IT_IS, CHOICES, run_ablation
from d2nwg_init.cli import app
from tests.pretrained_generators.small import random_generator, save_random_bundle, shaken
from tests.zoo_builder.synthetic import striped_dataset, write_npz
from zoo_builder.errors import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_npz(folder / "lines.npz", striped_dataset("lines", train=24, test=12))  # few: they are refined on for long
    write_npz(folder / "untested.npz", striped_dataset("untested", test=0))
    write_npz(folder / "stripes.npz", striped_dataset())
    return folder


@pytest.fixture(scope="module")
def shaken_bundle(tmp_path_factory):
    """Of which nothing is zero, so that each part has an influence."""
    path = tmp_path_factory.mktemp("bundles") / "shaken"
    save_random_bundle(path, generator=shaken(random_generator(), 0.05))
    return str(path)


def test_every_choice_is_measured_and_printed(data, shaken_bundle, tmp_path):
    out = tmp_path / "ablate.json"
    arguments = ["bench", "ablate", "--bundle", shaken_bundle, "--data", str(data), "--datasets", "lines"]
    result = CliRunner().invoke(app, [*arguments, "--work", str(tmp_path / "work"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = [r for r in json.loads(out.read_text())["rows"] if r["metric"] == "test_accuracy"]
    assert {(r["method"], r["choice"]) for r in rows} == {(of, c) for of, group in CHOICES.items() for c in group}
    assert all(0 <= r["value"] <= 100 for r in rows)
    assert "guidance 2" in result.output


def test_what_is_measured_is_not_measured_again(data, shaken_bundle, tmp_path, monkeypatch):
    few = {"sample": {AS_IT_IS: CHOICES["sample"][AS_IT_IS]}}
    monkeypatch.setattr(ablation, "CHOICES", few)
    first = run_ablation(shaken_bundle, ["lines"], data, 2, tmp_path)[1]
    monkeypatch.setattr(ablation, "CHOICES", {"sample": {AS_IT_IS: None}})  # building would fail
    assert run_ablation(shaken_bundle, ["lines"], data, 2, tmp_path)[1] == first
    monkeypatch.setattr(ablation, "source_state", lambda: "0" * 40)  # other code, whose figures may be others
    with pytest.raises(TypeError):
        run_ablation(shaken_bundle, ["lines"], data, 2, tmp_path)


def test_what_is_kept_is_of_one_uncommitted_change(monkeypatch):
    monkeypatch.setattr(results, "source_commit", lambda: "0" * 40)
    assert results.source_state() == "0" * 40
    monkeypatch.setattr(results, "source_commit", lambda: "0" * 40 + "-dirty")
    states = []
    for change in ("one", "another", "one"):
        monkeypatch.setattr(results, "_git", lambda *_, change=change: change)
        states.append(results.source_state())
    assert states[0] == states[2] != states[1]


def test_no_choice_pays_for_the_images_that_all_read(data, shaken_bundle, tmp_path, monkeypatch):
    there = []

    def build(arena):
        there.append({"train", "support"} <= vars(arena).keys())
        return arena.pretrained()

    monkeypatch.setattr(ablation, "CHOICES", {"sample": {AS_IT_IS: build, "another": build}})
    run_ablation(shaken_bundle, ["lines"], data, 1, tmp_path)
    assert there == [True, True]


@pytest.mark.parametrize(("name", "words"), [("untested", "no test images"), ("stripes", "was trained on")])
def test_a_dataset_that_nothing_can_be_measured_on_is_refused(name, words, data, shaken_bundle, tmp_path):
    with pytest.raises(DataError, match=words):
        run_ablation(shaken_bundle, [name], data, 1, tmp_path)
