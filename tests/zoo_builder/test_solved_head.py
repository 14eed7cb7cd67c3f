"""The solved head against scikit-learn's ridge regression, and its leave-one-out against leaving one out."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from tests.zoo_builder.synthetic import seeded
from zoo_builder.solved_head import RIDGES, SCALES, left_out_loss, solve_head


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


def test_only_the_ridges_that_are_asked_for_are_tried():
    features, labels = clouds(40, 12)
    features = features + 30 * F.one_hot(labels, 12)  # which wants a small one
    assert solve_head(features, labels, 3).ridge < 0.5
    few = solve_head(features, labels, 3, ridges=(0.5, 2.0))
    assert few.ridge == 0.5
    expected = few.scale * left_out(features, labels, penalty(features, few.ridge))
    torch.testing.assert_close(few.left_out_logits.double(), expected, atol=1e-4, rtol=1e-4)


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


def test_absent_images_count_for_nothing():
    features, labels = clouds(24, 4)
    present = (torch.arange(24) % 4 != 0).float()
    some = features[present > 0], labels[present > 0], 3
    whole, part = solve_head(features, labels, 3, present), solve_head(*some)
    torch.testing.assert_close(whole.weight, part.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.bias, part.bias, atol=1e-5, rtol=1e-4)
    assert (whole.ridge, whole.scale) == (part.ridge, part.scale)
    torch.testing.assert_close(left_out_loss(features, labels, 3, present), left_out_loss(*some))


def test_class_without_images_never_wins():
    features, labels = clouds()
    head = solve_head(features, labels, 5)
    assert head.weight.shape == (5, 12)
    assert set((features @ head.weight.T + head.bias).argmax(1).tolist()) == {0, 1, 2}
    assert set(head.left_out_logits.argmax(1).tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 40)], ids=["more_images", "more_features"])
def test_left_out_loss_is_that_of_the_solved_head(n, d):
    features, labels = torch.stack([clouds(n, d)[0], clouds(n, d, 4)[0]]), torch.stack([clouds(n, d)[1]] * 2)
    head = solve_head(features, labels, 3)
    expected = [F.cross_entropy(logits, labels[0]) for logits in head.left_out_logits]
    torch.testing.assert_close(left_out_loss(features, labels, 3), torch.stack(expected))


def test_left_out_loss_has_the_right_gradient():
    """Ridge and scale are constants: the best of a grid they stay, for a small enough step."""
    features, labels = clouds(10, 4)
    leaf = features.double().requires_grad_()
    loss = left_out_loss(leaf, labels, 3)
    loss.backward()
    step = 1e-3 * leaf.grad / leaf.grad.norm()
    change = left_out_loss(leaf.detach() + step, labels, 3) - left_out_loss(leaf.detach() - step, labels, 3)
    assert change.item() == pytest.approx(2e-3 * leaf.grad.norm().item(), rel=0.01)


def test_a_head_that_diverged_does_not_stop_the_others():
    features, labels = torch.stack([clouds()[0], clouds(seed=3)[0]]), torch.stack([clouds()[1]] * 2)
    features[1, 3] = torch.inf
    losses = left_out_loss(features, labels, 3)
    assert losses[0] == left_out_loss(features[0], labels[0], 3)
    assert not torch.isfinite(losses[1])
