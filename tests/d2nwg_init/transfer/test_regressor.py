"""The network regressor and the coordinates that it is taught."""

import torch

from d2nwg_init.benchmarks.transfer.regressor import NetworkRegressor, principal_components
from tests.zoo_builder.synthetic import same, seeded
from zoo_builder.backbones import predict, prepare_images


def test_components_hold_every_vector():
    vectors = torch.randn(6, 40, generator=seeded(0)).double() * torch.arange(1, 7)[:, None]
    directions, coordinates = principal_components(vectors @ vectors.T, 48)
    assert coordinates.shape == (6, 5)  # six points about their mean
    rebuilt = vectors.mean(0) + (coordinates @ directions).double() @ vectors
    torch.testing.assert_close(rebuilt, vectors, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coordinates.square().mean(), torch.tensor(1.0))


def test_few_components_are_those_of_the_largest_variance():
    vectors = torch.randn(8, 40, generator=seeded(1)).double()
    centred = vectors - vectors.mean(0)
    directions, coordinates = principal_components(vectors @ vectors.T, 3)
    rebuilt = (coordinates @ directions).double() @ vectors
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(rebuilt, left[:, :3] * values[:3] @ right[:3], rtol=1e-4, atol=1e-4)


def test_it_is_trained_once_and_read_again(subject, whole, folder):
    entries = [whole.entry(i) for i in subject.library.ids]
    again = NetworkRegressor.trained(subject.body, subject.library, entries, folder)
    assert same(again.state_dict(), subject.network.state_dict())


def test_it_tells_the_zoos_datasets_apart(subject, whole):
    """Two entries: their weights must lie on their own side of the mean."""
    for i, name in enumerate(subject.library.ids):
        images, labels = whole.entry(name).support()
        features = predict(subject.body, prepare_images(subject.body, images))
        weights = subject.network.weights(features, labels, 3)
        assert weights[i] > 0.5
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
