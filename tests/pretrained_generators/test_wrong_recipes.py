"""A recipe that is wrong is refused before any work: nothing is left that would bind the corrected one."""

from dataclasses import replace

import pytest

from pretrained_generators.dataset_encoder import EncoderConfig
from pretrained_generators.latent_diffusion import DiffusionConfig
from pretrained_generators.training.recipe import FunctionalStage
from pretrained_generators.training.train import train_generator
from pretrained_generators.weight_vae import VAEConfig
from tests.pretrained_generators.small import RECIPE
from zoo_builder.errors import RecipeError


def episodes(**changes):
    return {"functional_training": FunctionalStage(6, **changes)}


WRONG = {
    "domain": (episodes(domains=("plain", "inverted")), "domains: there is no 'inverted'; did you mean 'invert'"),
    "no domains": (episodes(domains=()), "functional_training.domains"),
    "share of no dataset": (episodes(shares={"stripse": 0.5}), "no dataset 'stripse'; did you mean 'stripes'"),
    "shares above one": (episodes(shares={"stripes": 0.7, "blobs": 0.7}), "add up to 1"),
    "negative share": (episodes(shares={"stripes": -0.5}), "functional_training.shares.stripes"),
    "name": ({"name": "tiny\x1b[31m"}, "name: .* not printable"),
    "all are probes": ({"probes": RECIPE.plans}, "every entry of .* is a probe"),
    "nothing held back": ({"held_back": 0}, "held_back: .* got 0"),
    "heads of the VAE": ({"vae": VAEConfig(width=16, heads=3)}, "vae: a width of 16 cannot be split into 3 heads"),
    "heads of the encoder": ({"encoder": EncoderConfig(width=18, heads=4)}, "encoder: a width of 18"),
    "odd width": ({"diffusion": DiffusionConfig(width=15, heads=3)}, "diffusion: expected an even width, got 15"),
    "no latent": ({"vae": VAEConfig(latent=0)}, "vae.latent: .* got 0"),
    "no steps": ({"vae_training": replace(RECIPE.vae_training, steps=0)}, "vae_training.steps: .* got 0"),
    "batch": (
        {"diffusion_training": replace(RECIPE.diffusion_training, batch_size=-4)},
        "diffusion_training.batch_size: .* got -4",
    ),
    "one class": (
        {"encoder_training": replace(RECIPE.encoder_training, classes=1)},
        "encoder_training.classes: .* got 1",
    ),
    "scope": ({"scope": "norms"}, "unknown scope 'norms'; did you mean 'norm'"),
    "scope of the head": ({"scope": "head"}, "scope: 'head' has a head.* Take 'all', 'norm'"),
    "scope with the head": ({"scope": "head+norm"}, r"scope: 'head\+norm' has a head"),
    "seed": ({"seed": 2**44}, "seed: .* got 17592186044416"),
    "chunk": ({"chunk": 0}, "a chunk must hold 1 number or more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipe_is_refused_before_any_work(case, zoo, data_dir, tmp_path):
    changes, words = WRONG[case]
    with pytest.raises(RecipeError, match=words):
        train_generator(zoo, replace(RECIPE, **changes), tmp_path / "out", data_dir)
    assert not (tmp_path / "out").exists()


def test_more_probes_than_a_bundle_may_have_are_refused_before_any_work(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrained_generators.training.train.MAX_PROBES", 9)
    with pytest.raises(RecipeError, match=r"10 entries are of .* at most 9 can be probes"):
        train_generator(zoo, replace(RECIPE, probes=RECIPE.plans), tmp_path / "out")
    assert not (tmp_path / "out").exists()
