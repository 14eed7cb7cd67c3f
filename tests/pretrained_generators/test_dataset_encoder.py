import pytest
import torch

from pretrained_generators.dataset_encoder import DatasetEncoder, EncoderConfig
from tests.pretrained_generators.small import seeded, shaken


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = shaken(DatasetEncoder(10, EncoderConfig(width=16, inducing=4, heads=2, embedding=8)), 0.3)
    encoder.feature_mean.normal_(generator=seeded(1))
    encoder.feature_std.uniform_(0.5, 2, generator=seeded(2))
    return encoder.requires_grad_(False)


@pytest.fixture
def support():
    """Three classes of 2, 5 and 9 images, mixed."""
    labels = torch.tensor([0] * 2 + [1] * 5 + [2] * 9)[torch.randperm(16, generator=seeded(3))]
    return torch.randn(16, 10, generator=seeded(4)) + labels[:, None], labels


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_image_order_has_no_influence(encoder, support):
    features, labels = support
    order = torch.randperm(16, generator=seeded(5))
    for a, b in zip(encoder(features, labels, 3), encoder(features[order], labels[order], 3), strict=True):
        close(a, b)


def test_class_embeddings_follow_the_order_of_classes_and_the_dataset_embedding_ignores_it(encoder, support):
    features, labels = support
    classes, dataset = encoder(features, labels, 3)
    renamed = torch.tensor([2, 0, 1])
    renamed_classes, renamed_dataset = encoder(features, renamed[labels], 3)
    close(renamed_classes[renamed], classes)
    close(renamed_dataset, dataset)
    assert (classes[0] - classes[1]).abs().max() > 1e-2  # so that the order could be seen


def test_class_without_images_is_zero_and_has_no_influence(encoder, support):
    features, labels = support
    classes, dataset = encoder(features, labels, 3)
    moved = torch.tensor([1, 4, 6])
    wide_classes, wide_dataset = encoder(features, moved[labels], 8)
    close(wide_classes[moved], classes)
    close(wide_dataset, dataset)
    empty = [c for c in range(8) if c not in moved]
    assert not wide_classes[empty].any()
    assert wide_classes[moved].abs().sum(1).min() > 0


def test_padding_has_no_influence(encoder, support):
    """Every image of the largest class four times over: attention gives the same, and the rest is padded more."""
    features, labels = support
    largest = labels == 2
    more_features = torch.cat([features, *[features[largest]] * 3])
    more_labels = torch.cat([labels, *[labels[largest]] * 3])
    for a, b in zip(encoder(features, labels, 3), encoder(more_features, more_labels, 3), strict=True):
        close(a, b)


def test_every_image_has_influence(encoder, support):
    features, labels = support
    _, dataset = encoder(features, labels, 3)
    for i in range(16):
        changed = features.clone()
        changed[i] += 1
        assert (encoder(changed, labels, 3)[1] - dataset).abs().max() > 1e-4


def test_labels_have_influence(encoder, support):
    features, labels = support
    other = labels.roll(1)  # as many images in each class, but other ones
    assert (encoder(features, other, 3)[1] - encoder(features, labels, 3)[1]).abs().max() > 1e-3


def test_features_are_standardised_by_the_zoos_mean_and_deviation(encoder, support):
    features, labels = support
    expected = encoder(features, labels, 3)[1]
    inside = (features - encoder.feature_mean) / encoder.feature_std
    encoder.feature_mean.zero_()
    encoder.feature_std.fill_(1)
    close(encoder(inside, labels, 3)[1], expected)


def test_dataset_embedding_has_unit_mean_square(encoder, support):
    features, labels = support
    assert encoder(features, labels, 3)[1].square().mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 30])
def test_any_number_of_classes(encoder, classes):
    labels = torch.arange(60) % classes
    embeddings, dataset = encoder(torch.randn(60, 10, generator=seeded(0)), labels, classes)
    assert embeddings.shape == (classes, 16)
    assert dataset.shape == (8,)
    assert torch.isfinite(dataset).all()
