"""The bundle that ships, on real images that it never saw: scikit-learn's digits."""

import pytest
import timm
import torch

import d2nwg_init
from d2nwg_init.benchmarks.fine_tuning import train_loader
from d2nwg_init.bundles import find_bundle
from d2nwg_init.candidates import FINALISTS
from pretrained_generators.bundle import embedded_bundles, load_bundle, save_bundle
from pretrained_generators.nearest_datasets import FAR, nearest_datasets
from tests.pretrained_generators.small import same, seeded
from zoo_builder.datasets import load_dataset

BUNDLE = "test_resnet-64"


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(BUNDLE)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=10)


@pytest.fixture
def loader(model):
    return train_loader(load_dataset("digits"), model, size=64, batch_size=64, seed=0)


def test_it_is_found_for_the_model_by_structure(model):
    found, _ = find_bundle(model, "auto")
    assert found.config.name == BUNDLE


def test_it_was_not_trained_on_what_it_is_measured_on(bundle):
    assert bundle.config.trained_on
    assert not {t.name for t in bundle.config.trained_on} & {"digits", *bundle.config.held_out}


def test_image_order_and_class_order_have_no_influence(bundle, loader):
    images, labels = next(iter(loader))
    encoder, features = bundle.generator.encoder, bundle.generator.features(images)
    classes, dataset = encoder(features, labels, 10)
    order, renamed = (torch.randperm(n, generator=seeded(n)) for n in (len(labels), 10))
    for other, (other_classes, again) in (
        (classes, encoder(features[order], labels[order], 10)),
        (classes[renamed.argsort()], encoder(features, renamed[labels], 10)),
    ):
        torch.testing.assert_close(other_classes, other, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again, dataset, atol=1e-4, rtol=1e-4)


def test_saved_and_reloaded_it_samples_equal_bits(bundle, loader, tmp_path):
    about = {
        k: getattr(bundle.config, k) for k in ("name", "trained_on", "held_out", "base_sha256", "base_pretrained_on")
    }
    save_bundle(bundle.generator, tmp_path, **about)
    again = load_bundle(tmp_path)
    condition = bundle.generator.embed(*next(iter(loader)), 10)
    first, second = (g.sample_deltas(condition, 2, seed=3) for g in (bundle.generator, again.generator))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not same(first[0], first[1])


@pytest.mark.parametrize("name", embedded_bundles(whole=True))
def test_noise_is_far_from_everything_and_digits_are_nearer(name, loader):
    generator = load_bundle(name).generator
    digits = torch.cat([images for images, _ in loader])[:256]
    noise = torch.rand(digits.shape, generator=seeded(0))
    (digits, *_), (noise, *_) = nearest_datasets(generator, digits), nearest_datasets(generator, noise)
    assert noise.distance > FAR
    assert noise.distance > 1.2 * digits.distance


def test_what_the_bundle_gives_beats_the_users_own_body_on_digits(model, loader):
    report = d2nwg_init.initialize(model, loader, num_candidates=2, num_support=512)
    losses = {c.name: c.loss for c in report.candidates}
    own = {name: losses.pop(name) for name in ("own_body", "own_body_as_is", "as_passed")}
    assert report.from_bundle
    assert len(losses) == 1 + FINALISTS
    assert max(losses.values()) < min(own.values())
    assert max(own.values()) == own["as_passed"]
    assert report.chosen in losses
    assert report.chosen in str(report)
    assert {n.name for n in report.neighbours} == {t.name for t in load_bundle(BUNDLE).config.trained_on}
