import pytest
import torch

from tests.pretrained_generators.small import copied, labelled_images, random_generator, same, seeded
from zoo_builder.datasets.image_dataset import standardize_channels

SCALE, SHIFT = torch.tensor([0.3, 2.0, 40.0]).view(1, 3, 1, 1), torch.tensor([-5.0, 0.4, 100.0]).view(1, 3, 1, 1)


def test_standardised_channels_have_mean_zero_and_deviation_one():
    images = standardize_channels(labelled_images(12, 3)[0] * SCALE + SHIFT)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), rtol=1e-4, atol=0)


def test_a_channel_without_contrast_stays_finite():
    images = labelled_images(12, 3)[0]
    images[:, 1] = 0.5
    assert torch.isfinite(standardize_channels(images)).all()


def test_embedding_does_not_depend_on_the_loaders_normalisation(generator):
    images, labels = labelled_images(24, 3)
    plain = generator.embed(images, labels, 3)
    other = generator.embed(images * SCALE + SHIFT, labels, 3)
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-3)
    assert (generator.embed(labelled_images(24, 2)[0], labels, 3) - plain).abs().max() > 1e-2


def test_embedding_does_not_depend_on_how_images_are_batched(generator):
    """Features come from stored BatchNorm statistics: an image's own do not depend on its neighbours."""
    images, _ = labelled_images(24, 3)
    together = generator.features(images)
    turned = generator.features(images.flip(0)).flip(0)
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=1e-5)


def test_embedding_changes_nothing_of_the_generator(generator):
    before = copied(generator.state_dict())
    images, labels = labelled_images(24, 3)
    generator.sample_deltas(generator.embed(images, labels, 3), 2, seed=0, steps=3)
    assert same(generator.state_dict(), before)


def test_equal_seeds_give_equal_deltas_and_others_do_not(generator):
    embedding = torch.randn(8, generator=seeded(0))
    first, again, other = (generator.sample_deltas(embedding, 1, seed, steps=4)[0] for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_deltas_depend_on_the_embedding(generator):
    first, second = (generator.sample_deltas(torch.full((8,), v), 1, 0, steps=4)[0] for v in (-1.0, 1.0))
    assert not same(first, second)


@pytest.mark.parametrize("model", ["test_resnet", "mobilenetv3_small_050", "test_vit", "torchvision:squeezenet1_1"])
def test_deltas_fit_the_body_of_any_architecture(model):
    generator = random_generator(model)
    deltas = generator.sample_deltas(torch.zeros(8), 2, seed=0, steps=2)
    body = dict(generator.config.backbone.create().named_parameters())
    assert len(deltas) == 2
    for delta in deltas:
        assert {k: v.shape for k, v in delta.items()} == {k: v.shape for k, v in body.items()}
        assert all(v.abs().max() > 0 for v in delta.values())
    images, labels = labelled_images(6, 2)
    assert generator.embed(images, labels, 2).shape == (8,)


def test_double_precision_of_the_generator_or_by_default_gives_the_same_weights(generator):
    images, labels = labelled_images(24, 3)

    def sampled(of, images):
        return of.sample_deltas(of.embed(images, labels, 3), 1, 0, steps=4)[0]

    expected = sampled(generator, images)
    double = sampled(random_generator().double(), images.double())
    torch.set_default_dtype(torch.float64)
    try:
        by_default = sampled(generator, images)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, delta in expected.items():
        assert double[name].dtype == torch.float64
        torch.testing.assert_close(double[name].float(), delta, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(by_default[name], delta, rtol=1e-3, atol=1e-6)
