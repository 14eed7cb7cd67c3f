"""Saving a bundle loses nothing: neither what is a stranger's, nor, wherever it ends, what was measured."""

import errno
import os
from pathlib import Path

import pytest

from pretrained_generators import bundle_config
from pretrained_generators.bundle import load_bundle, load_config
from pretrained_generators.bundle_files import MAX_FILES
from pretrained_generators.card import write_card
from pretrained_generators.generator import Generator
from pretrained_generators.training.train import train_generator
from tests.pretrained_generators.small import RECIPE, save_random_bundle, write_measured_card
from zoo_builder.errors import BundleError


@pytest.fixture
def path(tmp_path):
    """A bundle with all that can be said of its weights, and a picture."""
    path = tmp_path / "bundle"
    save_random_bundle(path)
    (path / "audit.json").write_text('{"verdict": {"text": "No copying found."}}')
    (path / "metrics.jsonl").write_text("{}")
    (path / "logo.png").write_bytes(b"\x89PNG")
    write_measured_card(path)
    return path


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def loaded(path, changed):
    """With other weights than the bundle's, if they are `changed`."""
    generator = Generator.from_pretrained(path)
    generator.vae.mean[0, 0] += changed
    return generator


@pytest.mark.parametrize("name", ["README.md", "results.json", "metrics.jsonl", "config.json"])
def test_a_folder_of_something_else_is_left_alone_and_training_learns_it_first(name, path, zoo, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / name).write_text('{"mine": 1}')
    before = files(project)
    with pytest.raises(BundleError, match=f"holds {name} and is no bundle"):
        Generator.from_pretrained(path).save_pretrained(project)
    with pytest.raises(BundleError, match=f"holds {name} and is no bundle"):
        train_generator(zoo, RECIPE, project)
    assert files(project) == before


def test_a_folder_in_which_no_bundle_could_be_read_is_learnt_before_training(zoo, tmp_path):
    (tmp_path / "runs" / "zoo").mkdir(parents=True)
    with pytest.raises(BundleError, match="holds 'zoo', which is no part of a bundle"):
        train_generator(zoo, RECIPE, tmp_path / "runs")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["zoo"]


def test_what_a_killed_saving_left_is_gone_after_the_next(path):
    generator = loaded(path, False)
    for name in (".generator.safetensors.0a1b", ".config.json.7"):
        (path / name).write_bytes(b"half of it")
    with pytest.raises(BundleError, match="Move it elsewhere"):
        load_bundle(path)
    generator.save_pretrained(path)
    load_bundle(path)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("written", range(4))
def test_a_full_disk_leaves_the_bundle_as_it_was(written, changed, path, monkeypatch):
    generator = loaded(path, changed)
    before, calls = files(path), iter(range(written if not changed else min(written, 1)))

    def sync(_):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zoo_builder.files.os.fsync", sync)
    with pytest.raises(OSError, match="No space"):
        generator.save_pretrained(path)
    assert files(path) == before


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("moved", range(7))
def test_wherever_saving_ends_no_bundle_tells_of_other_weights(moved, changed, path, monkeypatch):
    generator = loaded(path, changed)
    before, calls, replace, unlink = files(path), iter(range(moved)), os.replace, Path.unlink

    def step(do):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        do()

    def remove(self, missing_ok=False):
        if self.name.startswith("."):
            unlink(self, missing_ok)
        else:
            step(lambda: unlink(self, missing_ok))

    with monkeypatch.context() as patch:
        patch.setattr("zoo_builder.files.os.replace", lambda a, b: step(lambda: replace(a, b)))
        patch.setattr("pathlib.Path.unlink", remove)
        with pytest.raises(KeyboardInterrupt):
            generator.save_pretrained(path)
    if not changed:
        assert files(path) == before
        return
    try:
        config = load_bundle(path).config
    except BundleError:
        generator.save_pretrained(path)
        config = load_bundle(path).config
    told = config.has_card, "audit.json" in files(path)
    assert told == (files(path)["generator.safetensors"] == before["generator.safetensors"],) * 2


def test_more_files_than_a_bundle_may_have_are_refused_and_nothing_is_written(path):
    for i in range(MAX_FILES):
        (path / f"{i}.png").write_bytes(b"")
    before = files(path)
    for record in (write_measured_card, lambda folder: write_card(load_config(folder), folder)):
        with pytest.raises(BundleError, match=r"at most 31 more.*take none elsewhere"):
            record(path)
        assert files(path) == before


def test_more_than_a_config_may_say_is_refused_before_anything_is_written_or_trained(path, zoo, tmp_path, monkeypatch):
    before = files(path)
    with pytest.raises(BundleError, match="longer than 1048576 bytes"):
        save_random_bundle(path, learnt=tuple(f"branch-{i:060}" for i in range(20_000)))
    assert files(path) == before
    monkeypatch.setattr(bundle_config, "ROOM", bundle_config.MAX_CONFIG_BYTES)
    with pytest.raises(BundleError, match="a zoo of fewer entries"):
        train_generator(zoo, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
