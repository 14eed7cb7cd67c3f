"""The solved head against scikit-learn, and its leave-one-out against leaving one out."""

import torch
from sklearn.linear_model import Ridge

from zoo_builder.solved_head import ridge_query_logits, solve_head


def data(n=40, d=12, k=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % k
    return torch.randn(n, d, generator=generator) + 0.7 * torch.randn(k, d, generator=generator)[labels], labels


def penalty(features, ridge):
    """The head's ridge is in units of the mean eigenvalue of the centred kernel."""
    centred = features.double() - features.double().mean(0)
    return float(ridge * centred.square().sum() / len(features))


def refit(features, labels, alpha):
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    return Ridge(alpha=alpha).fit(features.double().numpy(), one_hot.numpy())


def test_weight_and_bias_are_scaled_ridge_regression():
    features, labels = data()
    head = solve_head(features, labels, 3)
    reference = refit(features, labels, penalty(features, head.ridge))
    torch.testing.assert_close(
        head.weight.double(), head.scale * torch.from_numpy(reference.coef_), atol=1e-5, rtol=1e-4
    )
    expected = head.scale * torch.from_numpy(reference.predict(features.double().numpy()))
    torch.testing.assert_close((features @ head.weight.T + head.bias).double(), expected, atol=1e-4, rtol=1e-4)


def test_left_out_logits_are_those_of_a_head_solved_without_the_image():
    features, labels = data()
    head = solve_head(features, labels, 3)
    alpha = penalty(features, head.ridge)
    for i in (0, 7, 39):
        rest = torch.arange(len(labels)) != i
        without = refit(features[rest], labels[rest], alpha).predict(features[i : i + 1].double().numpy())[0]
        expected = (head.scale * torch.from_numpy(without)).float()
        torch.testing.assert_close(head.left_out_logits[i], expected, atol=1e-4, rtol=1e-4)


def test_episodic_form_agrees_and_its_gradient_is_right():
    features, labels = (t.double() if t.is_floating_point() else t for t in data(n=14, d=5))
    query = features[:4] + 0.1
    ridge, scale = torch.tensor(0.3, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    reference = refit(features, labels, penalty(features, 0.3 + 1e-6 / penalty(features, 1.0)))
    logits = ridge_query_logits(features, labels, query, 3, ridge, scale)
    torch.testing.assert_close(logits, 2 * torch.from_numpy(reference.predict(query.numpy())), atol=1e-8, rtol=1e-6)
    inputs = tuple(t.clone().requires_grad_() for t in (features, query, ridge, scale))
    assert torch.autograd.gradcheck(lambda s, q, r, c: ridge_query_logits(s, labels, q, 3, r, c), inputs)


def test_a_class_without_images_does_not_win():
    features, labels = data()
    head = solve_head(features, labels, 5)
    predicted = (features @ head.weight.T + head.bias).argmax(1)
    assert set(predicted.tolist()) <= {0, 1, 2}
