"""Which datasets are found to be related."""

import pytest
import torch

from tests.zoo_builder.synthetic import random_body, seeded, striped_images
from zoo_builder.clusters import cluster_datasets, embed_dataset


def groups(sizes, spread, seed=0):
    """Points about as many random directions as there are sizes."""
    noise, points = seeded(seed), {}
    for group, size in enumerate(sizes):
        centre = torch.randn(16, generator=noise)
        for i in range(size):
            points[f"{'zyxw'[group]}{i}"] = centre + spread * torch.randn(16, generator=noise)
    return points


@pytest.mark.parametrize("sizes", [(3, 4), (5, 3, 4), (3, 3, 3, 3)])
def test_groups_are_found_with_their_number(sizes):
    points = groups(sizes, 0.15)
    clusters = cluster_datasets(points, 6)
    assert {tuple({n[0] for n in c}) for c in clusters} == {(letter,) for letter in "zyxw"[: len(sizes)]}
    assert len(clusters) == len(sizes)


def test_clusters_part_the_datasets_whatever_their_order():
    points = groups((4, 4), 2.0)
    clusters = cluster_datasets(points, 3)
    assert sorted(n for c in clusters for n in c) == sorted(points)
    assert cluster_datasets(dict(reversed(points.items())), 3) == clusters
    assert len(clusters) <= 3


def test_few_datasets_are_one_cluster():
    assert cluster_datasets(groups((2,), 1.0), 6) == (("z0", "z1"),)
    assert cluster_datasets(groups((3, 3), 0.1), 1) == (tuple(sorted(groups((3, 3), 0.1))),)


def test_embedding_does_not_depend_on_the_order_of_images_or_the_numbers_of_classes():
    body = random_body().eval()
    images, labels = striped_images(30)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 100, torch.from_numpy(labels)
    order, renamed = torch.randperm(30, generator=seeded(0)), torch.tensor([2, 0, 1])
    first = embed_dataset(body, x, y)
    torch.testing.assert_close(embed_dataset(body, x[order], renamed[y[order]]), first, atol=1e-5, rtol=1e-4)
    assert (embed_dataset(body, x.flip(1), y) - first).norm() > 1e-3
