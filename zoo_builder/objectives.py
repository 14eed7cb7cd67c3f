"""What a zoo task minimises: the loss of a solved head on a few classes (episodic), or of trained heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from zoo_builder.domain_images import DomainImages
from zoo_builder.solved_head import ridge_query_logits
from zoo_builder.tasks import FineTuneTask, Training

Sources = Mapping[tuple[str, str], DomainImages]  # by dataset and domain


class Batch(NamedTuple):
    images: torch.Tensor  # uint8 [B, 3, S, S]
    labels: torch.Tensor  # int64 [B]
    dataset: str
    num_classes: int


class Objective(Protocol):
    def parameters(self) -> list[nn.Parameter]:
        """Its own, which are trained with the body's."""

    def draw(self, rng: np.random.Generator) -> Batch: ...

    def loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor: ...


class Episodic:
    """Solve a ridge head on half of a batch of a few classes; the loss is the other half's cross-entropy, which is
    back-propagated through the solve (R2-D2, Bertinetto et al., ICLR 2019)."""

    def __init__(self, task: FineTuneTask, sources: Sources) -> None:
        self.task, self.sources = task, sources
        self.own = [key for key in sources if key[0] in task.datasets]
        self.related = [key for key in sources if key[0] in task.related]
        self.log_ridge = nn.Parameter(torch.tensor(-2.3))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def parameters(self) -> list[nn.Parameter]:
        return [self.log_ridge, self.log_scale]

    def draw(self, rng: np.random.Generator) -> Batch:
        pool = self.own if not self.related or rng.random() < self.task.own_share else self.related
        key = pool[rng.integers(len(pool))]
        source = self.sources[key]
        index, labels, count = draw_episode(source.y_train.numpy(), self.task.training, rng)
        return Batch(source.x_train[index], labels, key[0], count)

    def loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        half = len(batch.labels) // 2
        logits = ridge_query_logits(
            features[:half],
            batch.labels[:half],
            features[half:],
            batch.num_classes,
            self.log_ridge.exp(),
            self.log_scale.exp(),
        )
        return F.cross_entropy(logits, batch.labels[half:])


class Classification:
    """Ordinary fine-tuning; over several datasets each has a head of its own (a mixture)."""

    def __init__(self, task: FineTuneTask, sources: Sources, heads: Mapping[str, nn.Linear]) -> None:
        self.task, self.sources, self.heads = task, sources, heads

    def parameters(self) -> list[nn.Parameter]:
        return [p for head in self.heads.values() for p in head.parameters()]

    def draw(self, rng: np.random.Generator) -> Batch:
        key = list(self.sources)[rng.integers(len(self.sources))]
        source = self.sources[key]
        index = rng.integers(len(source.y_train), size=self.task.training.batch_size)
        return Batch(source.x_train[index], source.y_train[index], key[0], source.num_classes)

    def loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(self.heads[batch.dataset](features), batch.labels)


def draw_episode(y: np.ndarray, training: Training, rng: np.random.Generator) -> tuple[np.ndarray, torch.Tensor, int]:
    """Indices of images of a few random classes, as many of each; labels renumbered from 0; the class count.

    The first half is the support and holds half of each class. No image is there twice: it would stand on both sides.
    """
    present = np.unique(y)
    count = min(training.classes, len(present))
    quota = max(2, training.batch_size // count)
    support: list[tuple[int, int]] = []
    query: list[tuple[int, int]] = []
    for label, c in enumerate(rng.choice(present, count, replace=False)):
        members = np.flatnonzero(y == c)
        chosen = rng.choice(members, min(quota, len(members)), replace=False)
        # Of an odd number the larger part goes where fewer are.
        half = (len(chosen) + (len(support) < len(query))) // 2
        support += [(i, label) for i in chosen[:half]]
        query += [(i, label) for i in chosen[half:]]
    index, labels = np.array(support + query).T
    return index, torch.from_numpy(labels), count
