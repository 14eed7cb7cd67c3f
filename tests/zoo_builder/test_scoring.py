"""What a body is said to be worth."""

import dataclasses

import pytest
import torch

from tests.zoo_builder.synthetic import copied, random_body, same, seeded, striped_images
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.domain_images import DomainImages
from zoo_builder.errors import DataError
from zoo_builder.model_stack import shifted
from zoo_builder.rescaling import batchnorm_rescaling
from zoo_builder.scoring import Probe, Trial, best_strength, mean_accuracy, score
from zoo_builder.solved_head import solve_head


def source(train=60, test=40, seed=0):
    images, labels = striped_images(train + test, seed=seed)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    return DomainImages(x[:train], y[:train], x[train:], y[train:], 3)


def probe(body, support=30, queries=20, **changes):
    return Probe.of(body, source(**changes), support, queries, seed=0, batchnorm="rescaled")


def test_a_probe_has_its_images_with_their_labels_and_no_test_image_in_the_support():
    whole, body = source(), random_body()
    one = probe(body)
    assert (len(one.support), len(one.labels), len(one.query_labels), len(one.images)) == (30, 30, 20, 50)
    train = {image.numpy().tobytes(): int(label) for image, label in zip(whole.x_train, whole.y_train, strict=True)}
    assert [train[image.numpy().tobytes()] for image in one.support] == one.labels.tolist()


def test_without_test_images_there_is_no_score():
    with pytest.raises(DataError, match="without test images"):
        probe(random_body(), test=0)


class Told(torch.nn.Module):
    """Features that are the labels, told by the first pixel, times a parameter."""

    def __init__(self, size):
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(size))

    def forward(self, x):
        return self.size * torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 3).float()


@pytest.mark.parametrize("size", [1.0, 0.0, float("inf")])
def test_solved_accuracy_is_high_where_features_tell_the_classes_apart_and_a_guess_where_they_do_not(size):
    one = probe(random_body())
    labels = torch.cat([one.labels, one.query_labels])
    telling = dataclasses.replace(one, images=labels[:, None, None, None].float().expand(-1, 3, 2, 2))
    (found,) = score(Told(size), [Trial(telling, {})])
    assert found.accuracy == 100 if size == 1.0 else found.accuracy < 60


def test_a_given_head_is_scored_as_it_is():
    body, one = random_body(), probe(random_body())
    share = 100 * (one.query_labels == 1).float().mean().item()
    (given,) = score(body, [Trial(one, {}, head=(torch.zeros(3, 96), torch.tensor([0.0, 1.0, 0.0])))])
    assert given.head_accuracy == pytest.approx(share)
    (plain,) = score(body, [Trial(one, {})])
    assert given.accuracy == plain.accuracy
    assert plain.head_accuracy != plain.head_accuracy


def test_shifted_tensors_are_base_and_strength_times_delta_and_the_given_ones_stay():
    base = copied(random_body(1).state_dict())
    before, names = copied(base), [n for n, _ in random_body().named_parameters()]
    delta = {n: torch.randn(base[n].shape, generator=seeded(0)).half() for n in names[:3]}
    found = shifted(base, delta, 0.5)
    for name, value in found.items():
        torch.testing.assert_close(value, base[name] + 0.5 * delta[name].float() if name in delta else base[name])
    assert same(shifted(base, delta, 0.0), before)
    assert same(base, before)


@pytest.mark.parametrize(
    ("table", "best"),
    [
        ({0.0: 55, 0.25: 60, 0.5: 70, 0.75: 65, 1.0: 50}, 0.5),
        ({0.0: 55, 0.25: 40, 0.5: 30, 0.75: 20, 1.0: 10}, 0.0),
        ({0.0: 55, 0.25: 60, 0.5: 60, 0.75: 60, 1.0: 60}, 1.0),
    ],
)
def test_best_strength_is_that_of_the_highest_accuracy_and_the_stronger_of_equals(table, best):
    assert best_strength(table) == best


def delta_of(body, seed, size=0.05):
    return {n: size * torch.randn(p.shape, generator=seeded(seed)) for n, p in body.named_parameters()}


def test_a_trial_is_scored_as_a_body_with_its_parameters_and_the_base_stays():
    """By the functions for one model: BatchNorm rescaled for the base and recalibrated, a head solved."""
    body, delta = random_body().eval(), delta_of(random_body(), 1)
    before, one = copied(body.state_dict()), probe(body)
    (found,) = score(body, [Trial(one, delta, 0.5)])
    assert same(copied(body.state_dict()), before)
    model = random_body().eval()
    rescaled = shifted(before, batchnorm_rescaling(model, one.images[:30]))
    model.load_state_dict(shifted(rescaled, delta, 0.5))
    recalibrate_batchnorm(model, one.images[:30])
    with torch.no_grad():
        features = model(one.images)
    head = solve_head(features[:30], one.labels, 3)
    torch.testing.assert_close(found.solved[0], head.weight, atol=1e-3, rtol=1e-3)
    right = ((features[30:] @ head.weight.T + head.bias).argmax(1) == one.query_labels).float().mean().item()
    assert found.accuracy == pytest.approx(100 * right)


def test_trials_scored_at_once_are_those_scored_one_by_one():
    """Whatever their supports, queries and classes."""
    body = random_body().eval()
    two = dataclasses.replace(probe(body, seed=2), labels=torch.arange(30) % 2, num_classes=2)
    probes = [probe(body), probe(body, support=24), probe(body, queries=33, seed=3), two]
    trials = [Trial(p, delta_of(body, i), 0.5) for i, p in enumerate(2 * probes)]
    alone, together = score(body, trials), score(body, trials, at_once=3)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.solved[0], other.solved[0], atol=1e-2, rtol=1e-2)
        assert one.solved[1].shape == other.solved[1].shape
        assert abs(one.accuracy - other.accuracy) <= 5.0 + 1e-6  # an image on the edge


def test_mean_is_over_the_probes():
    body = random_body()
    probes = [probe(body), dataclasses.replace(probe(body), query_labels=torch.zeros(20, dtype=torch.long))]
    scores = score(body, [Trial(p, {}) for p in probes])
    assert mean_accuracy(scores) == pytest.approx(sum(s.accuracy for s in scores) / 2)
