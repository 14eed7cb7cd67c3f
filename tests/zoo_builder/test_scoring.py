"""What a body is said to be worth."""

import dataclasses

import pytest
import torch

from tests.zoo_builder.synthetic import copied, random_body, same, seeded, striped_images
from zoo_builder import scoring
from zoo_builder.domain_images import DomainImages
from zoo_builder.errors import DataError
from zoo_builder.scoring import Probe, best_strength, mean_solved_accuracy, set_parameters


def source(train=60, test=40, seed=0):
    images, labels = striped_images(train + test, seed=seed)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    return DomainImages(x[:train], y[:train], x[train:], y[train:], 3)


def probe(body, support=30, queries=20, **changes):
    return Probe.of(body, source(**changes), support, queries, seed=0)


def test_a_probe_has_its_images_with_their_labels_and_no_test_image_in_the_support():
    whole, body = source(), random_body()
    one = probe(body)
    assert (len(one.support), len(one.labels), len(one.query_labels), len(one.images)) == (30, 30, 20, 50)
    train = {image.numpy().tobytes(): int(label) for image, label in zip(whole.x_train, whole.y_train, strict=True)}
    assert [train[image.numpy().tobytes()] for image in one.support] == one.labels.tolist()


def test_without_test_images_there_is_no_score():
    with pytest.raises(DataError, match="without test images"):
        probe(random_body(), test=0)


def test_solved_accuracy_is_high_where_features_tell_the_classes_apart_and_chance_where_they_do_not():
    one = probe(random_body())
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8))

    class Told(torch.nn.Module):
        """Features that are the labels."""

        def __init__(self, labels):
            super().__init__()
            self.labels, self.at = labels, 0

        def forward(self, x):
            part = self.labels[self.at : self.at + len(x)]
            self.at += len(x)
            return torch.nn.functional.one_hot(part, 3).float()

    assert one.accuracies(Told(torch.cat([one.labels, one.query_labels])))[0] == 100
    with torch.no_grad():
        flat[1].weight.zero_()
    assert one.accuracies(flat)[0] < 60


def test_a_given_head_is_scored_as_it_is():
    body, one = random_body(), probe(random_body())
    head = torch.nn.Linear(96, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    share = 100 * (one.query_labels == 1).float().mean().item()
    solved, given = one.accuracies(body, head)
    assert given == pytest.approx(share)
    assert solved == one.accuracies(body)[0]


def test_parameters_become_base_and_strength_times_delta():
    body, base = random_body(), copied(random_body(1).state_dict())
    names = [n for n, _ in body.named_parameters()]
    delta = {n: torch.randn(base[n].shape, generator=seeded(0)).half() for n in names[:3]}
    set_parameters(body, base, delta, 0.5)
    for name, parameter in body.named_parameters():
        want = base[name] + 0.5 * delta[name].float() if name in delta else base[name]
        torch.testing.assert_close(parameter.detach(), want)
    set_parameters(body, base, delta, 0.0)
    assert same({n: p.detach() for n, p in body.named_parameters()}, {n: base[n] for n in names})


@pytest.mark.parametrize(
    ("table", "best"),
    [
        ({0.25: 60, 0.5: 70, 0.75: 65, 1.0: 50}, 0.5),
        ({0.25: 40, 0.5: 30, 0.75: 20, 1.0: 10}, 0.0),
        ({0.25: 60, 0.5: 60, 0.75: 60, 1.0: 60}, 1.0),
    ],
)
def test_best_strength_is_that_of_the_highest_accuracy_and_the_stronger_of_equals(table, best, monkeypatch):
    body = random_body()
    origin = copied(body.state_dict())
    name = next(n for n, _ in body.named_parameters())
    delta = {name: torch.ones_like(origin[name])}

    def told(model, _probes):
        strength = (dict(model.named_parameters())[name] - origin[name]).mean().item()
        return float(table[round(strength, 2)])

    monkeypatch.setattr(scoring, "mean_solved_accuracy", told)
    found = best_strength(body, origin, delta, [], floor=55.0)
    assert found.best == best
    assert found.accuracies == {0.0: 55.0} | {k: float(v) for k, v in table.items()}
    assert found.best_accuracy == found.accuracies[best]


def test_mean_is_over_the_probes():
    body = random_body()
    probes = [probe(body), dataclasses.replace(probe(body), query_labels=torch.zeros(20, dtype=torch.long))]
    each = [p.accuracies(body)[0] for p in probes]
    assert mean_solved_accuracy(body, probes) == pytest.approx(sum(each) / 2)
