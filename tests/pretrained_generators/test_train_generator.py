import json
import shutil
from dataclasses import replace

import pytest
import torch

from pretrained_generators.bundle import load_bundle
from pretrained_generators.nearest_datasets import feature_statistics
from pretrained_generators.training import loop, train
from pretrained_generators.training.audit_zoo import audit_zoo
from pretrained_generators.training.dataset_statistics import statistics_of_zoo
from pretrained_generators.training.gates import GATES
from pretrained_generators.training.train import train_generator, write_log
from pretrained_generators.training_plot import draw_training
from tests.pretrained_generators.small import (
    RECIPE,
    interrupted_stage,
    labelled_images,
    random_generator,
    small_zoo,
    write_measured_card,
)
from zoo_builder.backbones import prepare_images
from zoo_builder.errors import RecipeError, ZooError


@pytest.fixture(autouse=True, scope="module")
def checkpoints_come_often():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_EVERY", 4)
        yield


@pytest.fixture(scope="module")
def path(zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train_generator(zoo, RECIPE, out)
    return out


def train_until_killed(place, zoo, out):
    """At one of the places at its very end."""

    def kill(at, *_):
        if place == "shutil.rmtree":
            (at / "vae.jsonl").unlink()  # what it had come to
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"pretrained_generators.training.train.{place}", kill)
        with pytest.raises(KeyboardInterrupt):
            train_generator(zoo, RECIPE, out)


@pytest.fixture(scope="module")
def killed(zoo, tmp_path_factory):
    """Another training by the same recipe, which is behind all stages and was killed at the first of these places."""
    out = tmp_path_factory.mktemp("killed")
    train_until_killed("write_log", zoo, out)
    return out


@pytest.fixture
def ending(killed, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed, tmp_path / "ending")


def test_bundle_loads_and_generates_for_images(path):
    generator = load_bundle(path).generator
    images, labels = labelled_images(24, 3)
    delta = generator.sample_deltas(generator.embed(images, labels, 3), 1, 0, steps=4)[0]
    assert delta.keys() == dict(generator.base.named_parameters()).keys()
    assert any(v.abs().max() > 0 for v in delta.values())


def test_bundle_tells_what_it_was_made_of(path, zoo):
    config = load_bundle(path).config
    assert config.name == "tiny"
    assert config.held_out == ("secret",)
    assert config.base_sha256 == zoo.base_sha256
    assert {t.name for t in config.trained_on} == {"stripes", "blobs"}
    assert sum(t.entries for t in config.trained_on) == 10 - RECIPE.held_back
    assert config.generator.vae == RECIPE.vae
    assert config.generator.layout.chunk == RECIPE.chunk
    layout = config.generator.layout
    assert config.measured["compression"] == layout.size / (layout.num_chunks * RECIPE.vae.latent)
    assert config.measured.keys() >= {"reconstruction_gain_original", "sampling_gain_original"}


def test_bundle_tells_what_its_datasets_look_like(path, zoo):
    bundle = load_bundle(path)
    generator, entries = bundle.generator, list(zoo.entries(("branch",)))
    for trained_on, kept in zip(bundle.config.trained_on, generator.statistics, strict=True):
        supports = [e.support()[0].float() for e in entries if e.task.datasets == (trained_on.name,)]
        features = torch.cat([generator.features(support) for support in supports])
        torch.testing.assert_close(kept, feature_statistics(generator, features), atol=0.03, rtol=0.03)


def test_a_dataset_looks_as_it_does_through_no_domain_where_that_is_known(zoo):
    generator = random_generator()

    def statistics(*seen):
        entries = [replace(e, task=replace(e.task, datasets=(d,), domains=(look,))) for e, d, look in seen]
        return statistics_of_zoo(generator, entries, ["a", "b"])

    def of(*entries):
        images = torch.cat([e.support()[0] for e in entries])
        return feature_statistics(generator, generator.features(prepare_images(generator.base, images)))

    plain, other, more, b = list(zoo.entries())[:4]
    found = statistics((plain, "a", "plain"), (other, "a", "invert"), (more, "a", "plain"), (b, "b", "invert"))
    assert torch.equal(found[0], of(plain, more))
    assert torch.equal(found[1], of(b))
    assert statistics((plain, "a", "plain")) is None


def test_losses_and_what_was_measured_are_kept_and_drawn(zoo, ending, monkeypatch):
    monkeypatch.setattr(train, "draw_training", draw_training)
    train_generator(zoo, RECIPE, ending)
    lines = [json.loads(line) for line in (ending / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line.get("step")) for line in lines] == [
        *((stage, step) for stage in ("vae", "encoder", "diffusion") for step in (4, 6)),
        ("measured", None),
    ]
    measured = load_bundle(ending).config.measured
    assert {k: lines[-1][k] for k in measured} == measured
    drawn = (ending / "training.svg").read_text()
    assert drawn.startswith("<?xml")
    assert draw_training(lines[:-1], measured, GATES) == drawn


def test_a_scope_of_norm_layers_generates_these_alone(zoo, tmp_path):
    recipe = replace(RECIPE, scope="norm", vectorisation="layer")
    train_generator(zoo, recipe, tmp_path)
    generator = load_bundle(tmp_path).generator
    images, labels = labelled_images(24, 3)
    delta = generator.sample_deltas(generator.embed(images, labels, 3), 1, 0, steps=4)[0]
    norms = [n for n, m in generator.base.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert delta.keys() == {f"{n}.{end}" for n in norms for end in ("weight", "bias")}


def test_all_of_a_body_is_a_scope_of_its_own(path, zoo, tmp_path):
    train_generator(zoo, replace(RECIPE, scope="body"), tmp_path)
    assert (tmp_path / "generator.safetensors").read_bytes() == (path / "generator.safetensors").read_bytes()


@pytest.mark.parametrize("rank", [0, 4])
def test_a_zoo_whose_entries_trained_norm_layers_alone_is_learnt_and_audited(rank, tmp_path):
    zoo = small_zoo(tmp_path, scope="head+norm")
    train_generator(zoo, replace(RECIPE, rank=rank), tmp_path / "bundle")
    found = audit_zoo(load_bundle(tmp_path / "bundle"), zoo, samples=1)
    assert sum(s.method == "generated" for s in found) == RECIPE.held_back
    with pytest.raises(RecipeError, match=r"scope: no entry .* trained a parameter in \('layer1.0.conv1',\)"):
        train_generator(zoo, replace(RECIPE, rank=rank, scope=("layer1.0.conv1",)), tmp_path / "untrained")
    assert not list((tmp_path / "untrained").glob("**/*"))


def test_base_of_the_bundle_is_the_zoos(path, zoo):
    state, base = load_bundle(path).generator.base.state_dict(), zoo.base()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.float(), base[name].half().float(), rtol=0, atol=0)


def test_measured_it_gets_a_card(path, tmp_path):
    measured = shutil.copytree(path, tmp_path / "measured")
    write_measured_card(measured)
    load_bundle(measured)
    card = (measured / "README.md").read_text()
    assert card.startswith("---\n")
    for words in (
        "# tiny",
        "`test_resnet`",
        "32x32",
        *(f"| {t.name} | {t.entries} |" for t in load_bundle(path).config.trained_on),
        "secret",
        "compression",
    ):
        assert words in card
    assert "{" not in card


def test_nothing_but_the_bundle_and_its_log_stays(path):
    bundle = {"config.json", "generator.safetensors", "datasets.safetensors"}
    assert {p.name for p in path.iterdir()} == bundle | {"metrics.jsonl", "training.svg"}


def test_finished_training_is_not_run_again(path, zoo):
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.iterdir()}
    assert train_generator(zoo, RECIPE, path) == load_bundle(path).config
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.iterdir()} == before
    with pytest.raises(RecipeError, match="another recipe"):
        train_generator(zoo, replace(RECIPE, seed=RECIPE.seed + 1), path)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.iterdir()} == before


def test_equal_recipes_give_equal_files(path, zoo, ending):
    train_generator(zoo, RECIPE, ending)
    for file in ("config.json", "generator.safetensors"):
        assert (ending / file).read_bytes() == (path / file).read_bytes()


def test_training_that_is_interrupted_in_every_stage_resumes_to_equal_files(path, zoo, tmp_path, monkeypatch):
    for stage in ("vae", "encoder", "diffusion"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pretrained_generators.training.{stage}.train_stage", interrupted_stage)
            with pytest.raises(KeyboardInterrupt):
                train_generator(zoo, RECIPE, tmp_path)
        assert (tmp_path / "training" / f"{stage}.resume").exists()
    train_generator(zoo, RECIPE, tmp_path)
    for file in ("config.json", "generator.safetensors"):
        assert (tmp_path / file).read_bytes() == (path / file).read_bytes()


@pytest.mark.parametrize("place", ["write_log", "draw_training", "record_files", "shutil.rmtree"])
def test_what_was_killed_at_its_very_end_is_finished_to_equal_files(place, path, zoo, ending):
    """At two places: what goes on from the first comes by the others as what was never killed does."""
    train_until_killed(place, zoo, ending)
    assert (ending / "training").exists()
    assert train_generator(zoo, RECIPE, ending) == load_bundle(ending).config
    assert {p.name: p.read_bytes() for p in ending.iterdir()} == {p.name: p.read_bytes() for p in path.iterdir()}


def test_lines_of_a_log_that_were_cut_or_come_twice_are_left_out(tmp_path):
    lines = [json.dumps({"stage": "vae", "step": step, "loss": 1.5}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "vae.jsonl").write_text(lines[0] + lines[1][:20] + lines[1] + lines[2] * 2 + lines[2][:-4])
    write_log(tmp_path, tmp_path, {})
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert kept == [lines[0], lines[2], '{"stage": "measured"}\n']


def begin(zoo, out, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pretrained_generators.training.train.train_vae", stop)
        with pytest.raises(KeyboardInterrupt):
            train_generator(zoo, RECIPE, out)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"chunk": 8192}, {"vae_training": replace(RECIPE.vae_training, steps=5)}]
)
def test_begun_training_refuses_another_recipe(zoo, tmp_path, monkeypatch, change):
    begin(zoo, tmp_path, monkeypatch)
    with pytest.raises(RecipeError, match="another recipe"):
        train_generator(zoo, replace(RECIPE, **change), tmp_path)


def test_begun_training_refuses_a_zoo_that_has_grown(zoo, tmp_path, monkeypatch):
    grown = small_zoo(tmp_path, 11)
    begin(zoo, tmp_path / "out", monkeypatch)
    with pytest.raises(RecipeError, match="another recipe or zoo"):
        train_generator(grown, RECIPE, tmp_path / "out")


def test_too_few_entries_are_an_error_before_any_work(tmp_path):
    zoo = small_zoo(tmp_path, 7)
    with pytest.raises(ZooError, match="at least 8"):
        train_generator(zoo, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_held_back_entries_have_no_influence_on_the_weights(path, zoo, tmp_path):
    """What they hold changes what is measured, and no weight."""
    copy = tmp_path / "zoo"
    shutil.copytree(zoo.path, copy)
    config = load_bundle(path).config
    assert len(config.kept_back) == RECIPE.held_back
    for kept_out, other in zip(config.kept_back, config.learnt, strict=False):
        shutil.copyfile(zoo.entry(other).path, copy / "entries" / zoo.entry(kept_out).path.name)
    train_generator(type(zoo).open(copy), RECIPE, tmp_path / "out")
    weights = "generator.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (path / weights).read_bytes()
    configs = [json.loads((p / "config.json").read_text()) for p in (path, tmp_path / "out")]
    assert configs[0]["trained_on"] == configs[1]["trained_on"]
