"""The solved head against scikit-learn's ridge regression, and its leave-one-out against leaving one out."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from tests.zoo_builder.synthetic import seeded
from zoo_builder.solved_head import RIDGES, SCALES, ridge_query_logits, solve_head


def clouds(n=40, d=12, k=3, seed=0):
    """Overlapping clouds, one a class, far from the origin."""
    labels = torch.arange(n) % k
    centres = torch.randn(k, d, generator=seeded(seed))
    return torch.randn(n, d, generator=seeded(seed + 1)) + 0.7 * centres[labels] + 3, labels


def penalty(features, ridge):
    """The absolute penalty: a ridge is in units of the mean eigenvalue of the centred kernel."""
    centred = features.double() - features.double().mean(0)
    return float(ridge * torch.linalg.eigvalsh(centred @ centred.T).mean())


def refit(features, labels, alpha, k=3):
    one_hot = F.one_hot(labels, k).double().numpy()
    model = Ridge(alpha=alpha).fit(features.double().numpy(), one_hot)
    return lambda x: torch.from_numpy(model.predict(x.double().numpy()))


def left_out(features, labels, alpha, k=3):
    """Row i from a ridge regression that never saw image i."""
    every = torch.arange(len(labels))
    rows = [refit(features[every != i], labels[every != i], alpha, k)(features[i : i + 1]) for i in every]
    return torch.cat(rows)


@pytest.mark.parametrize(("n", "d"), [(40, 12), (15, 50)], ids=["more_images", "more_features"])
def test_weight_and_bias_are_ridge_regression_with_intercept_times_scale(n, d):
    features, labels = clouds(n, d)
    head = solve_head(features, labels, 3)
    query = clouds(20, d, seed=5)[0]
    for x in (features, query):
        expected = head.scale * refit(features, labels, penalty(features, head.ridge))(x)
        torch.testing.assert_close((x @ head.weight.T + head.bias).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 12), (15, 50)], ids=["more_images", "more_features"])
def test_left_out_logits_are_those_of_a_head_solved_without_the_image(n, d):
    features, labels = clouds(n, d)
    head = solve_head(features, labels, 3)
    expected = head.scale * left_out(features, labels, penalty(features, head.ridge))
    torch.testing.assert_close(head.left_out_logits.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spread", [0.2, 3.0], ids=["hard", "easy"])
def test_ridge_and_scale_have_the_smallest_left_out_loss_of_the_grid(spread):
    features, labels = clouds(12, 4)
    features = features + spread * F.one_hot(labels, 4)
    losses = {}
    for ridge in RIDGES:
        logits = left_out(features, labels, penalty(features, ridge))
        losses |= {(ridge, scale): F.cross_entropy(scale * logits, labels).item() for scale in SCALES}
    head = solve_head(features, labels, 3)
    assert losses[head.ridge.item(), head.scale.item()] <= min(losses.values()) + 1e-9
    assert F.cross_entropy(head.left_out_logits, labels).item() == pytest.approx(min(losses.values()), abs=1e-5)


def test_units_and_origin_of_the_features_do_not_matter():
    features, labels = clouds()
    plain, moved = solve_head(features, labels, 3), solve_head(100 * features - 7, labels, 3)
    torch.testing.assert_close(plain.left_out_logits, moved.left_out_logits, atol=1e-3, rtol=1e-3)


def test_features_without_information_give_the_frequencies_of_the_other_images():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    head = solve_head(torch.full((6, 4), 2.5), labels, 3)
    counts = F.one_hot(labels, 3)
    expected = (head.scale * (counts.sum(0) - counts) / 5).float()
    torch.testing.assert_close(head.left_out_logits, expected, atol=1e-5, rtol=1e-5)


def test_heads_solved_at_once_are_those_solved_alone():
    features = torch.stack([clouds()[0], 2 * clouds(seed=3)[0] + 1, clouds(seed=4)[0]])
    labels = torch.stack([clouds()[1], clouds(seed=3)[1], clouds(seed=4)[1] % 2])
    together = solve_head(features, labels, torch.tensor([3, 5, 2]))
    for i, classes in enumerate((3, 5, 2)):
        alone = solve_head(features[i], labels[i], classes)
        torch.testing.assert_close(together.weight[i, :classes], alone.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            together.left_out_logits[i, :, :classes], alone.left_out_logits, atol=1e-5, rtol=1e-4
        )
        assert (together.ridge[i], together.scale[i]) == (alone.ridge, alone.scale)
        assert (together.bias[i, classes:] == -torch.inf).all()


def test_absent_support_images_count_for_nothing():
    features, labels = clouds(12, 4)
    ridge, scale = torch.tensor(0.3), torch.tensor(2.0)
    present = (torch.arange(12) % 4 != 0).float()
    some = features[present > 0], labels[present > 0]
    expected = ridge_query_logits(*some, features, 3, ridge, scale)
    torch.testing.assert_close(ridge_query_logits(features, labels, features, 3, ridge, scale, present), expected)


def test_class_without_images_never_wins():
    features, labels = clouds()
    head = solve_head(features, labels, 5)
    assert head.weight.shape == (5, 12)
    assert set((features @ head.weight.T + head.bias).argmax(1).tolist()) == {0, 1, 2}
    assert set(head.left_out_logits.argmax(1).tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 40)], ids=["more_images", "more_features"])
def test_query_logits_are_ridge_regression_of_the_support(n, d):
    features, labels = clouds(n, d)
    support, query = features.double(), clouds(9, d, seed=5)[0].double()
    logits = ridge_query_logits(support, labels, query, 3, torch.tensor(0.3).double(), torch.tensor(2.0).double())
    expected = 2 * refit(support, labels, penalty(support, 0.3))(query)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


def test_query_logits_have_the_right_gradient_in_support_query_ridge_and_scale():
    features, labels = clouds(10, 4)
    values = (features, features[:3] + 0.1, torch.tensor(0.3), torch.tensor(2.0))
    inputs = tuple(v.double().clone().requires_grad_() for v in values)
    assert torch.autograd.gradcheck(lambda s, q, r, c: ridge_query_logits(s, labels, q, 3, r, c), inputs)
    ridge_query_logits(inputs[0], labels, *inputs[1:2], 3, *inputs[2:])[0, 0].backward()
    assert all(v.grad.abs().sum() > 0 for v in inputs)
