"""What is drawn for a step, and the loss of it."""

import numpy as np
import pytest
import torch

from tests.zoo_builder.synthetic import seeded, striped_images, tiny_task
from zoo_builder.domain_images import DomainImages
from zoo_builder.objectives import Sampler, SolvedHeads, TrainedHeads, collate, draw_episode
from zoo_builder.tasks import Training


def source(count=60, classes=3, seed=0):
    images, labels = striped_images(count, classes, seed=seed)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    return DomainImages(x, y, x, y, classes)


CPU = torch.device("cpu")


def members(y):
    return [np.flatnonzero(y == c) for c in np.unique(y)]


@pytest.mark.parametrize("seed", range(5))
def test_an_episode_is_balanced_and_holds_no_image_twice(seed):
    y = np.repeat(np.arange(30), 20)
    index, labels, count = draw_episode(members(y), Training(1, batch_size=40, classes=5), np.random.default_rng(seed))
    assert count == 5
    assert len(index) == len(set(index.tolist())) == 40
    assert labels.bincount().tolist() == [8] * 5
    for label in range(5):  # one class of the dataset for each of the episode
        assert len(set(y[index[labels.numpy() == label]])) == 1
    assert len(set(y[index])) == 5


def test_an_episode_of_few_classes_and_images_takes_what_there_is():
    y = np.array([0, 0, 0, 7, 7, 9])
    index, labels, count = draw_episode(members(y), Training(1, batch_size=40, classes=5), np.random.default_rng(0))
    assert count == 3
    assert sorted(index) == list(range(6))
    assert sorted(labels.bincount().tolist()) == [1, 2, 3]


def test_batches_come_from_all_domains_and_in_their_shares():
    sources = {
        (n, d): source(seed=i) for i, (n, d) in enumerate([("own", "plain"), ("own", "gray"), ("other", "plain")])
    }
    task = tiny_task(datasets=("own",), related=("other",), own_share=0.75)
    sampler = Sampler(task, sources, {key: {} for key in sources})
    drawn = [sampler.draw() for _ in range(200)]
    share = sum(one.source is not sources["other", "plain"] for one in drawn) / len(drawn)
    assert 0.65 < share < 0.85
    assert {id(one.source) for one in drawn} == {id(one) for one in sources.values()}


def test_every_image_is_drawn_before_one_comes_again():
    key = ("own", "plain")
    sampler = Sampler(tiny_task("finetune", datasets=("own",)), {key: source(count=60)}, {key: {}})
    drawn = np.concatenate([sampler.draw().chosen for _ in range(15)])
    for epoch in drawn.reshape(4, 60):
        assert sorted(epoch) == list(range(60))
    assert not np.array_equal(drawn[:60], drawn[60:120])


def episode(seed=0, classes=3, **training):
    task, key = tiny_task(datasets=("own",), training=Training(1, batch_size=16, **training)), ("own", "plain")
    rescaling = {"weight": torch.full((3,), float(seed))}
    return Sampler(task, {key: source(classes=classes, seed=seed)}, {key: rescaling}).draw()


def test_loss_of_an_episode_is_small_for_features_that_tell_the_classes_apart():
    batch = collate([episode()], CPU)
    noise = torch.randn(1, batch.labels.shape[1], 8, generator=seeded(0))
    clear = torch.nn.functional.one_hot(batch.labels, 8).float() * 20 + noise
    objective = SolvedHeads()
    assert objective.losses(clear, batch) < 0.3 < objective.losses(noise, batch)


def test_losses_of_several_models_are_those_of_each_alone():
    """However many classes and images they draw; what fills a batch up counts for nothing."""
    drawn = [episode(0), episode(1, classes=2), episode(2, classes=7)]
    together = collate(drawn, CPU)
    features = torch.randn(*together.labels.shape, 8, generator=seeded(0))
    losses = SolvedHeads().losses(features, together)
    for i, one in enumerate(drawn):
        alone = collate([one], CPU)
        own = features[i][together.present[i] > 0][None]
        torch.testing.assert_close(SolvedHeads().losses(own, alone)[0], losses[i])
        filled = together.images[i][together.present[i] > 0]
        assert torch.equal(filled, alone.images[0])
        assert torch.equal(together.fit["weight"][i], torch.full((3,), float(i)))


def test_each_dataset_of_a_mixture_has_its_own_head():
    sources = {("a", "plain"): source(), ("b", "plain"): source(classes=2, seed=1)}
    sampler = Sampler(tiny_task("mixture", datasets=("a", "b")), sources, {key: {} for key in sources})
    drawn = {one.head: one for one in (sampler.draw() for _ in range(20))}
    assert {h: one.num_classes for h, one in drawn.items()} == {0: 3, 1: 2}
    heads = [(torch.randn(k, 4, generator=seeded(k)), torch.zeros(k)) for k in (3, 2)]
    objective = TrainedHeads([heads, heads], CPU)
    batch = collate([drawn[1], drawn[0]], CPU)
    features = torch.randn(*batch.labels.shape, 4, generator=seeded(0))
    losses = objective.losses(features, batch)
    for m, h in enumerate((1, 0)):
        weight, bias = heads[h]
        expected = torch.nn.functional.cross_entropy(features[m] @ weight.T + bias, batch.labels[m])
        torch.testing.assert_close(losses[m], expected)
    losses.sum().backward()
    assert objective.weight.grad[0, 0].abs().sum() == objective.weight.grad[1, 1].abs().sum() == 0
    assert objective.weight.grad[0, 1].abs().sum() > 0
    for (weight, bias), (found, bias_found) in zip(heads, objective.heads(0, [3, 2]), strict=True):
        assert torch.equal(weight, found)
        assert torch.equal(bias, bias_found)
