"""Heads for a few images against scikit-learn."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from d2nwg_init.benchmarks.transfer.heads import logistic_head, nearest_class_mean_head
from tests.zoo_builder.synthetic import seeded


def clouds(n, k, d=8, seed=0):
    labels = torch.arange(n) % k
    centres = torch.randn(k, d, generator=seeded(3))
    return torch.randn(n, d, generator=seeded(seed)) + centres[labels] + 2, labels


def predicted(head, features):
    weight, bias = head
    return (features @ weight.T + bias).argmax(1).numpy()


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("n", [1, 5], ids=["one_image_a_class", "five"])
def test_nearest_class_mean_is_scikit_learns_nearest_centroid(k, n):
    x, y = clouds(n * k, k)
    query = clouds(200, k, seed=1)[0]
    expected = NearestCentroid().fit(x.numpy(), y.numpy()).predict(query.numpy())
    assert (predicted(nearest_class_mean_head(x, y, k), query) == expected).all()


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_is_scikit_learns_on_standardised_features(k, c):
    x, y = clouds(5 * k, k)
    query = clouds(50, k, seed=1)[0]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(x.numpy(), y.numpy())
    weight, bias = logistic_head(x, y, k, c)
    expected = torch.from_numpy(model.predict_proba(query.numpy())).float()
    torch.testing.assert_close((query @ weight.T + bias).softmax(1), expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("head", [nearest_class_mean_head, lambda x, y, k: logistic_head(x, y, k, 1.0)])
def test_a_class_without_images_is_never_predicted(head):
    x, y = clouds(12, 3)
    y[y == 1] = 2
    assert 1 not in predicted(head(x, y, 4), clouds(100, 3, seed=1)[0])
