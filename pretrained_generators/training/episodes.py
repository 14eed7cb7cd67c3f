"""Few-shot tasks from a zoo's datasets: what a generated body is tried on while the generator learns."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from zoo_builder.domain_images import SharedImages
from zoo_builder.domains import DOMAINS, apply_domain
from zoo_builder.errors import DataError, RecipeError, nearest_names
from zoo_builder.objectives import draw_episode
from zoo_builder.sources import SourceRecord
from zoo_builder.survey import load_unchanged
from zoo_builder.tasks import Training


@dataclass(frozen=True)
class Episode:
    """A few classes of one dataset through one domain."""

    images: torch.Tensor  # uint8 [B, 3, S, S], class by class
    labels: torch.Tensor  # int64 [B]
    num_classes: int

    def to(self, device: torch.device) -> Episode:
        return Episode(self.images.to(device), self.labels.to(device), self.num_classes)


class EpisodeSource:
    """Train images of datasets, kept in `folder` and mapped; each episode sees them through a domain of its own."""

    def __init__(
        self, datasets: Sequence[str], data_dir: Path, size: int, folder: Path, domains: Sequence[str],
        shares: Mapping[str, float], without: Collection[tuple[str, str]] = (),
        sources: Mapping[str, SourceRecord] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`shares`: the part of all episodes that a dataset has; the others share what is left alike. `without`: pairs
        of a dataset and a domain that it is not seen through; it must have others. `sources`: what the zoo remembers.

        Raises:
            RecipeError: as `probabilities`.
            DataError: a dataset is not in `data_dir`, or is not what the zoo was built from.
        """
        self.names = list(datasets)
        self.domains = {name: [d for d in domains if (name, d) not in without] for name in datasets}
        self.probabilities = probabilities(datasets, domains, shares)
        shared = SharedImages(folder, size, functools.partial(load_unchanged, sources, data_dir, size, False))
        self.parts = {name: shared.read(name)[:2] for name in datasets}
        self.members = {name: _members(np.asarray(y)) for name, (_, y) in self.parts.items()}
        for name, members in self.members.items():
            if len(members) < 2:
                raise DataError(f"{name} has {len(members)} class; an episode needs 2.")

    def draw(self, size: int, rng: np.random.Generator) -> Episode:
        name = self.names[rng.choice(len(self.names), p=self.probabilities)]
        domain = self.domains[name][rng.integers(len(self.domains[name]))]
        index, labels, count = draw_episode(self.members[name], Training(1, batch_size=size), rng)
        images = apply_domain(torch.from_numpy(self.parts[name][0][index]), domain, int(rng.integers(1 << 30)))
        return Episode(images, labels, count)


def probabilities(datasets: Sequence[str], domains: Sequence[str], shares: Mapping[str, float]) -> np.ndarray:
    """Of each dataset, to be drawn for an episode.

    Raises:
        RecipeError: an unknown domain, a share of a dataset that is not there, or shares of more than one.
    """
    for domain in domains:
        if domain not in DOMAINS:
            raise RecipeError(f"domains: there is no {domain!r}; {nearest_names(domain, DOMAINS)}")
    for name in shares:
        if name not in datasets:
            raise RecipeError(f"shares: the zoo has no dataset {name!r}; {nearest_names(name, datasets)}")
    others = [n for n in datasets if n not in shares]
    left = 1 - sum(shares.values())
    if left < 0 or (left > 1e-9 and not others):
        raise RecipeError(f"shares must add up to 1 at most, with other datasets to have the rest: {dict(shares)}.")
    found = np.array([shares.get(n, left / max(len(others), 1)) for n in datasets])
    return found / found.sum()


def _members(y: np.ndarray) -> list[np.ndarray]:
    """Indices of the images of each class that has two or more: of one alone nothing is left when it is left out."""
    members = [np.flatnonzero(y == c) for c in np.unique(y)]
    return [m for m in members if len(m) > 1]
