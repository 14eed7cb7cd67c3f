import pytest

from pretrained_generators.bundle import load_bundle
from tests.cli.conftest import fail, succeed
from tests.pretrained_generators.small import RECIPE_TOML, small_zoo
from zoo_builder.files import as_path


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


def test_a_zoo_at_a_url_is_trained_on_and_audited(recipe, tmp_path):
    out, url = tmp_path / "bundle", f"memory://{tmp_path.name}"
    zoo = small_zoo(as_path(url))
    assert str(zoo.path) == f"{url}/zoo"
    succeed("generator", "train", "--zoo", zoo.path, "--recipe", recipe, "--out", out)
    succeed("generator", "audit", out, "--zoo", zoo.path, "--samples", 1)
    assert (out / "audit.json").exists()


COMMANDS = {
    "generator train": ("--recipe", "small", "--out", "out"),
    "generator audit": ("out",),
    "bench generator": ("--bundle", "test_resnet-64"),
    "bench transfer": ("--data", "."),
    "bench sensitivity": ("--recipe", "small", "--data", ".", "--datasets", "digits", "--sizes", ""),
    "zoo list": None,
    "zoo verify": None,
    "zoo stats": None,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_url_reaches_the_zoo_as_it_is(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url, options = "memory://nowhere/zoo", COMMANDS[command]
    arguments = (url,) if options is None else (*options, "--zoo", url)
    assert f"{url} is not a zoo" in fail(*command.split(), *arguments)


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
