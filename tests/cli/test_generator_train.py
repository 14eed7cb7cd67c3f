import pytest

from pretrained_generators.bundle import load_bundle
from tests.cli.conftest import fail, succeed
from tests.pretrained_generators.small import RECIPE_TOML, small_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return small_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE_TOML)
    return path


def test_bundle_is_written_and_what_was_measured_is_printed(zoo, recipe, tmp_path):
    out = tmp_path / "bundle"
    text = succeed("generator", "train", "--zoo", zoo.path, "--recipe", recipe, "--out", out)
    config = load_bundle(out).config
    assert config.name == "by-hand"
    assert config.generator.vae.latent == 3
    for key, value in config.measured.items():
        assert f"{key}: {value:.3f}" in text
    assert f"written to {out}, without a card" in text
    assert not (out / "README.md").exists()


def test_zoo_that_is_too_small_is_an_error(recipe, tmp_path):
    zoo = small_zoo(tmp_path, 5)
    message = fail("generator", "train", "--zoo", zoo.path, "--recipe", recipe, "--out", tmp_path / "out")
    assert "holds 5 entries" in message


def test_list_shows_every_entry_with_its_accuracies(zoo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = succeed("zoo", "list", zoo.path).splitlines()
    for entry in zoo.entries():
        (line,) = (line for line in lines if entry.id in line)
        for figure in ("50.0", "60.0", "61.0", f"{entry.metrics['best_strength']:.2f}"):
            assert figure in line
