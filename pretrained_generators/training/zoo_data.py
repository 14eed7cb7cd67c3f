"""Zoo entries as tensors: what the stages of training are fed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pretrained_generators.generator import Generator
from pretrained_generators.weight_layout import WeightLayout
from zoo_builder.backbones import image_statistics
from zoo_builder.datasets.image_dataset import normalize_images
from zoo_builder.errors import ZooError
from zoo_builder.store import Zoo, ZooEntry


@dataclass(frozen=True)
class ZooData:
    entries: list[ZooEntry]
    chunks: torch.Tensor  # [E, n, chunk], standardised, each delta at its best strength
    features: list[torch.Tensor]  # of each entry's support images, [m, f]
    labels: list[torch.Tensor]  # [m]


def target_delta(entry: ZooEntry) -> dict[str, torch.Tensor]:
    """The delta times the strength that served its dataset best: what harms where it is strong is learnt as weak."""
    strength = entry.metrics["best_strength"]
    return {k: v * strength for k, v in entry.delta().items()}


def select_entries(zoo: Zoo, plans: tuple[str, ...]) -> list[ZooEntry]:
    """Entries of the given plans.

    Raises:
        ZooError: fewer than eight.
    """
    entries = list(zoo.entries(plans))
    if len(entries) < 8:
        raise ZooError(f"{zoo.path} holds {len(entries)} entries of {list(plans)}; a generator needs at least 8.")
    return entries


def read_zoo_data(entries: list[ZooEntry], layout: WeightLayout, generator: Generator) -> ZooData:
    mean, std = image_statistics(generator.base)
    chunks, features, labels = [], [], []
    for entry in entries:
        chunks.append(layout.to_chunks(target_delta(entry)))
        support, y = entry.support()
        features.append(generator.features(normalize_images(support, mean, std)))
        labels.append(y)
    return ZooData(entries, torch.stack(chunks), features, labels)


def draw_support(
    features: torch.Tensor, labels: torch.Tensor, shots: int, classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A random part of a support set: some of its classes, some images of each; labels renumbered."""
    seen = labels.unique()
    low = min(2, len(seen))
    count = int(torch.randint(low, min(classes, len(seen)) + 1, (1,), generator=generator))
    chosen = seen[torch.randperm(len(seen), generator=generator)[:count]]
    size = int(torch.randint(1, shots + 1, (1,), generator=generator))
    order = torch.randperm(len(labels), generator=generator)
    index = torch.cat([order[labels[order] == c][:size] for c in chosen])
    renumbered = torch.searchsorted(chosen.sort().values, labels[index])
    return features[index], renumbered, count
