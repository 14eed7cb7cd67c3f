"""How far images are from the datasets that a generator was trained on, by what its base sees in them.

The distance is Fréchet's between normal distributions of diagonal covariance (as in FID, Heusel et al. 2017), of the
base's features. The dataset encoder's embedding does not serve: noise lies nearer in it than most datasets do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pretrained_generators.generator import Generator
from zoo_builder.datasets.image_dataset import spread_evenly

IMAGES = 256  # looked at, of those given
ENOUGH_IMAGES = 64  # of fewer, what is measured is chance
# By the bundles with their base, the farthest development set of the benchmark is at 1.5, and the nearest of what is no
# dataset (noise of three kinds, flat colours, waves, shuffled pixels) at 1.9.
FAR = 1.7


@dataclass(frozen=True)
class Neighbour:
    """A dataset of the zoo."""

    name: str
    distance: float  # 1: as far as the zoo's datasets lie, in the median, from the nearest other one


def feature_statistics(generator: Generator, features: torch.Tensor) -> torch.Tensor:
    """Mean and deviation [2, f] of the base's features [N, f], in the scale that they have over the zoo."""
    encoder = generator.encoder
    scaled = (features - encoder.feature_mean) / encoder.feature_std
    return torch.stack([scaled.mean(0), scaled.std(0)])


def nearest_datasets(generator: Generator, images: torch.Tensor) -> tuple[Neighbour, ...]:
    """The datasets that a bundle's generator was trained on, the nearest to images [N, C, H, W] first, whatever their
    normalisation and size. None for too few images, or where the bundle does not say what its datasets look like."""
    if generator.bundle is None or generator.statistics is None or len(images) < ENOUGH_IMAGES:
        return ()
    chosen = spread_evenly(len(images), IMAGES)
    size = (generator.config.size, generator.config.size)
    resized = F.interpolate(images[chosen], size, mode="bilinear", antialias=True, align_corners=False)
    here = feature_statistics(generator, generator.features(resized))
    return neighbours(here, generator.statistics, [t.name for t in generator.bundle.trained_on])


def neighbours(here: torch.Tensor, statistics: torch.Tensor, names: Sequence[str]) -> tuple[Neighbour, ...]:
    """Datasets of `statistics` [D, 2, f] by their distance from `here` [2, f]. None of fewer than two, or where a
    distance is no number."""
    if len(statistics) < 2:
        return ()
    zoo = statistics.flatten(1)
    nearest = torch.cdist(zoo, zoo).fill_diagonal_(float("inf")).min(1).values
    distances = torch.cdist(here.flatten()[None], zoo)[0] / nearest.median()
    if not torch.isfinite(distances).all():
        return ()
    return tuple(Neighbour(names[i], distances[i].item()) for i in distances.argsort(stable=True).tolist())
