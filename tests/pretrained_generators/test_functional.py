"""Training end to end: on what generated weights are worth."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from pretrained_generators.bundle import load_bundle
from pretrained_generators.training import loop
from pretrained_generators.training.episodes import Episode, EpisodeSource
from pretrained_generators.training.functional import episode_loss, train_functional
from pretrained_generators.training.recipe import FunctionalStage
from pretrained_generators.training.train import train_generator
from tests.pretrained_generators.small import (
    RECIPE,
    SIZE,
    copied,
    interrupted_stage,
    labelled_images,
    random_generator,
    same,
)
from zoo_builder.datasets import load_dataset
from zoo_builder.errors import DataError, RecipeError
from zoo_builder.sources import SourceRecord

STAGE = FunctionalStage(steps=6, batch_size=16, episodes=2, domains=("plain", "invert"), shares={"blobs": 0.9})


def source(data_dir, tmp_path, **changes):
    stage = dataclasses.replace(STAGE, **changes)
    return EpisodeSource(["blobs", "stripes"], data_dir, SIZE, tmp_path, stage.domains, stage.shares)


def test_an_episode_has_each_class_in_both_halves_and_no_image_twice(data_dir, tmp_path):
    episode = source(data_dir, tmp_path, domains=("plain",)).draw(30, np.random.default_rng(0))
    assert set(episode.labels[::2].tolist()) == set(episode.labels[1::2].tolist()) == {0, 1, 2}
    assert len(episode.images.flatten(1).unique(dim=0)) == len(episode.images) == 30


def test_a_dataset_is_not_seen_through_a_domain_that_was_held_back(data_dir, tmp_path):
    """An image that is inverted is as bright as it was dark."""
    names, domains = ["blobs", "stripes"], ("plain", "invert")
    for kept_out, other in (("plain", "invert"), ("invert", "plain")):
        drawn = EpisodeSource(names, data_dir, SIZE, tmp_path / other, domains, {}, [("blobs", kept_out)])
        assert drawn.domains == {"blobs": [other], "stripes": ["plain", "invert"]}
        alone = EpisodeSource(["blobs"], data_dir, SIZE, tmp_path / "alone", (other,), {})
        drawn.probabilities = np.array([1.0, 0.0])  # nothing but blobs
        seen = [s.draw(30, np.random.default_rng(3)).images for s in (drawn, alone)]
        assert torch.equal(*seen)


def test_images_are_those_that_the_zoo_remembers(data_dir, tmp_path):
    sources = {"blobs": SourceRecord("MIT", "", load_dataset("blobs", data_dir).sha256, 0)}  # and no stripes
    drawn = functools.partial(EpisodeSource, ["blobs", "stripes"], data_dir, SIZE, tmp_path, ("plain",), {}, ())
    drawn(sources)
    other = dataclasses.replace(sources["blobs"], sha256="0" * 64)
    with pytest.raises(DataError, match=r"'blobs' has changed since this zoo was begun: .*\. Put it back"):
        EpisodeSource(["blobs"], data_dir, SIZE, tmp_path / "other", ("plain",), {}, (), {"blobs": other})


def test_shares_are_kept(data_dir, tmp_path):
    drawn = source(data_dir, tmp_path)
    assert drawn.probabilities[drawn.names.index("blobs")] == pytest.approx(0.9)
    rng = np.random.default_rng(0)
    mean = np.mean([drawn.draw(8, rng).images.float().mean().item() > 127 for _ in range(200)])
    assert 0.3 < mean < 0.7  # both domains are seen: blobs are light, inverted ones dark


@pytest.mark.parametrize("shares", [{"nowhere": 0.5}, {"blobs": 1.5}, {"blobs": 0.3, "stripes": 0.3}])
def test_impossible_shares_are_refused(data_dir, tmp_path, shares):
    with pytest.raises(RecipeError, match="shares"):
        source(data_dir, tmp_path, shares=shares)


def test_loss_is_of_the_generated_weights_and_reaches_them():
    generator = random_generator()
    images, labels = labelled_images(32, 2)
    episode = Episode((images * 40 + 100).clamp(0, 255).byte(), labels, 2)
    base = generator.base.state_dict()
    none = {k: torch.zeros_like(v) for k, v in generator.base_parameters().items()}
    gone = {k: -v for k, v in generator.base_parameters().items()}
    body, before = generator.base_copy(), copied(base)
    fine, blind = (episode_loss(body, base, d, episode, "rescaled").item() for d in (none, gone))
    assert fine < 0.5 * blind
    leaves = {k: v.clone().requires_grad_() for k, v in none.items()}
    episode_loss(body, base, leaves, episode, "rescaled").backward()
    assert all(v.grad is not None and torch.isfinite(v.grad).all() for v in leaves.values())
    assert same(generator.base.state_dict(), before)


def test_a_body_with_dropout_has_one_loss_and_leaves_the_global_random_state():
    """squeezenet1_1 has it before its head."""
    generator = random_generator("torchvision:squeezenet1_1")
    images, labels = labelled_images(16, 2)
    episode = Episode((images * 40 + 100).clamp(0, 255).byte(), labels, 2)
    body, base, before = generator.base_copy(), generator.base.state_dict(), torch.get_rng_state()
    first, again = (episode_loss(body, base, {}, episode, "rescaled") for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_lowers_the_loss_and_leaves_base_and_decoder(data_dir, tmp_path):
    """From a generator whose weights harm, and that could generate none."""
    torch.manual_seed(0)
    generator = random_generator().requires_grad_(True)
    base = generator.base_parameters()
    # Channels become alike: nothing that a head could mend.
    harm = generator.config.layout.to_chunks(
        {k: 0.75 * (v.mean(0) - v if v.ndim == 4 else 0 * v) for k, v in base.items()}
    )
    with torch.no_grad():
        generator.vae.basis[:, 0] = harm
        generator.vae.mean.copy_(harm)
    before, decoder = copied(generator.base.state_dict()), copied(generator.vae.state_dict())
    stage = dataclasses.replace(STAGE, steps=60, learning_rate=3e-3, ema_decay=0.8, batch_size=24)
    episodes = source(data_dir, tmp_path / "images")
    rng = np.random.default_rng(1)
    tried = [episodes.draw(24, rng) for _ in range(8)]

    def mean_loss():
        delta = generator.sample_deltas(None, 1, 0, steps=4)[0]
        with torch.no_grad():
            body = generator.base_copy()
            return sum(episode_loss(body, before, delta, e, "rescaled").item() for e in tried) / len(tried)

    at_first = mean_loss()
    train_functional(generator, episodes, stage, tmp_path / "training", 0)
    assert mean_loss() < 0.8 * at_first
    assert same(generator.base.state_dict(), before)
    assert same(generator.vae.state_dict(), decoder)


@pytest.fixture(scope="module")
def recipe():
    return dataclasses.replace(RECIPE, functional_training=STAGE)


def test_bundle_trained_end_to_end_differs_and_resumes_to_equal_files(
    recipe, zoo, trained, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 4)
    whole, again = (tmp_path / n for n in ("whole", "again"))
    train_generator(zoo, recipe, whole, data_dir)
    weights = "generator.safetensors"
    assert (whole / weights).read_bytes() != (trained / weights).read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr("pretrained_generators.training.functional.train_stage", interrupted_stage)
        with pytest.raises(KeyboardInterrupt):
            train_generator(zoo, recipe, again, data_dir)
    train_generator(zoo, recipe, again, data_dir)
    for file in ("config.json", weights):
        assert (again / file).read_bytes() == (whole / file).read_bytes()
    load_bundle(again)


def test_images_are_asked_for_before_any_work(recipe, zoo, tmp_path):
    with pytest.raises(RecipeError, match="--data"):
        train_generator(zoo, recipe, tmp_path / "out")
    with pytest.raises(DataError, match="No data folder"):
        train_generator(zoo, recipe, tmp_path / "out", tmp_path / "nowhere")
    np.savez(tmp_path / "blobs.npz", x=np.zeros(1))
    with pytest.raises(DataError, match="lacks datasets of the zoo: stripes"):
        train_generator(zoo, recipe, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
