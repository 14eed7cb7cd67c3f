"""What is drawn for a step, and the loss of it."""

import numpy as np
import pytest
import torch

from tests.zoo_builder.synthetic import seeded, striped_images, tiny_task
from zoo_builder.domain_images import DomainImages
from zoo_builder.objectives import Classification, Episodic, draw_episode
from zoo_builder.tasks import Training


def source(count=60, classes=3, seed=0):
    images, labels = striped_images(count, classes, seed=seed)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    return DomainImages(x, y, x, y, classes)


@pytest.mark.parametrize("seed", range(5))
def test_an_episode_is_balanced_and_holds_no_image_twice(seed):
    y = np.repeat(np.arange(30), 20)
    index, labels, count = draw_episode(y, Training(1, batch_size=40, classes=5), np.random.default_rng(seed))
    assert count == 5
    assert len(index) == len(set(index.tolist())) == 40
    assert labels.bincount().tolist() == [8] * 5
    for label in range(5):  # one class of the dataset for each of the episode
        assert len(set(y[index[labels.numpy() == label]])) == 1
    assert len(set(y[index])) == 5


def test_an_episode_of_few_classes_and_images_takes_what_there_is():
    y = np.array([0, 0, 0, 7, 7, 9])
    index, labels, count = draw_episode(y, Training(1, batch_size=40, classes=5), np.random.default_rng(0))
    assert count == 3
    assert sorted(index) == list(range(6))
    assert sorted(labels.bincount().tolist()) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_the_first_half_of_an_episode_holds_half_of_each_class(seed):
    """Else the query would ask for classes that the support does not know."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 9, 90)
    _, labels, count = draw_episode(y, Training(1, batch_size=35, classes=5), rng)
    half = len(labels) // 2
    counts = [part.bincount(minlength=count) for part in (labels[:half], labels[half:])]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_batches_come_from_all_domains_and_in_their_shares():
    sources = {
        (n, d): source(seed=i) for i, (n, d) in enumerate([("own", "plain"), ("own", "gray"), ("other", "plain")])
    }
    task = tiny_task(datasets=("own",), related=("other",), own_share=0.75)
    rng = np.random.default_rng(0)
    drawn = [Episodic(task, sources).draw(rng) for _ in range(200)]
    share = sum(batch.dataset == "own" for batch in drawn) / len(drawn)
    assert 0.65 < share < 0.85
    firsts = {int(batch.images.float().sum()) for batch in drawn if batch.dataset == "own"}
    assert len(firsts) > 2


def test_loss_of_an_episode_is_small_for_features_that_tell_the_classes_apart():
    task = tiny_task(datasets=("own",))
    objective = Episodic(task, {("own", "plain"): source()})
    batch = objective.draw(np.random.default_rng(0))
    noise = torch.randn(len(batch.labels), 8, generator=seeded(0))
    clear = torch.nn.functional.one_hot(batch.labels, 8).float() * 20 + noise
    assert objective.loss(clear, batch) < 0.3 < objective.loss(noise, batch)


def test_gradient_flows_into_support_query_ridge_and_scale():
    objective = Episodic(tiny_task(datasets=("own",)), {("own", "plain"): source()})
    batch = objective.draw(np.random.default_rng(0))
    features = torch.randn(len(batch.labels), 8, generator=seeded(0)).requires_grad_()
    objective.loss(features, batch).backward()
    assert (features.grad.abs().sum(1) > 0).all()
    assert all(p.grad.abs() > 0 for p in objective.parameters())


def test_each_dataset_of_a_mixture_has_its_own_head():
    heads = {"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)}
    objective = Classification(tiny_task("mixture", datasets=("a", "b")), {(n, "plain"): source() for n in "ab"}, heads)
    rng = np.random.default_rng(0)
    batch = next(b for b in iter(lambda: objective.draw(rng), None) if b.dataset == "b")
    objective.loss(torch.randn(len(batch.labels), 4), batch).backward()
    assert heads["a"].weight.grad is None
    assert heads["b"].weight.grad.abs().sum() > 0
    assert len(objective.parameters()) == 4
