"""A base that rescaled BatchNorm destroys, in all that a generator does with its base."""

import copy
import dataclasses
import shutil

import pytest
import torch

from pretrained_generators.bundle import load_bundle
from pretrained_generators.training.audit_zoo import audit_zoo
from pretrained_generators.training.episodes import Episode
from pretrained_generators.training.functional import episode_loss
from pretrained_generators.training.gates import LeftOut
from pretrained_generators.training.train import train_generator
from tests.pretrained_generators.small import (
    RECIPE,
    copied,
    labelled_images,
    random_generator,
    same,
    save_random_bundle,
)
from tests.zoo_builder.test_rescaling import leaning_on_its_means
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.batchnorm_fit import fit_batchnorm
from zoo_builder.errors import BundleError, RecipeError
from zoo_builder.store import Zoo


@pytest.fixture(scope="module")
def images():
    return labelled_images(60, 3)


def leaning(images, fit):
    generator = random_generator()
    recalibrate_batchnorm(generator.base, images)
    leaning_on_its_means(generator.base)
    generator.config = dataclasses.replace(generator.config, batchnorm=fit)
    return generator


def test_absorbed_it_is_worth_what_it_was_and_rescaled_next_to_nothing(images):
    x, y = images
    rescaled, absorbed = (leaning(x, fit) for fit in ("rescaled", "absorbed"))
    before = copied(absorbed.base.state_dict())
    assert LeftOut(absorbed, x, y).accuracy({}) > LeftOut(rescaled, x, y).accuracy({}) + 20
    loss, others = (g.worth_of([], x, y, 3, slice(None))[0, 0] for g in (absorbed, rescaled))
    assert loss < others - 0.2
    assert same(absorbed.base.state_dict(), before)


def test_the_functional_loss_is_of_the_base_so_fitted(images):
    x, y = images
    raw = ((x - x.amin()) / (x.amax() - x.amin()) * 255).byte()
    body = leaning(x, "absorbed").base
    losses = {
        fit: episode_loss(copy.deepcopy(body), body.state_dict(), {}, Episode(raw, y, 3), fit).item()
        for fit in ("rescaled", "absorbed")
    }
    assert losses["absorbed"] < losses["rescaled"] - 0.2


def test_a_bundle_says_how_and_another_way_is_refused(images, tmp_path):
    x, y = images
    save_random_bundle(tmp_path, generator=leaning(x, "absorbed"))
    generator = load_bundle(tmp_path).generator
    assert generator.config.batchnorm == "absorbed"
    assert LeftOut(generator, x, y).accuracy({}) == LeftOut(leaning(x, "absorbed"), x, y).accuracy({})
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"absorbed"', '"dissolved"'))
    with pytest.raises(BundleError, match="batchnorm"):
        load_bundle(tmp_path)


def test_a_bundle_whose_body_cannot_absorb_is_refused(tmp_path):
    generator = random_generator("test_vit")
    generator.config = dataclasses.replace(generator.config, batchnorm="absorbed")
    save_random_bundle(tmp_path, generator=generator)
    with pytest.raises(BundleError, match="could absorb"):
        load_bundle(tmp_path)


def test_a_generator_does_as_its_zoo(zoo, tmp_path):
    shutil.copytree(zoo.path, tmp_path / "zoo")
    absorbing = dataclasses.replace(Zoo.open(tmp_path / "zoo"), batchnorm="absorbed")
    absorbing.write_description()
    train_generator(Zoo.open(tmp_path / "zoo"), RECIPE, tmp_path / "out")
    bundle = load_bundle(tmp_path / "out")
    assert bundle.generator.config.batchnorm == "absorbed"
    with pytest.raises(RecipeError, match="another recipe or zoo"):
        train_generator(zoo, RECIPE, tmp_path / "out")
    with pytest.raises(BundleError, match="another base"):
        audit_zoo(bundle, zoo)


def test_images_are_fitted_to_in_any_normalisation(images):
    x, _ = images
    body = leaning(x, "absorbed").base
    one, two = (fit_batchnorm(body, images, "absorbed") for images in (x, 3 * x - 5))
    assert one.keys() == two.keys()
    for name, change in one.items():
        torch.testing.assert_close(two[name], change, rtol=1e-3, atol=1e-3)
