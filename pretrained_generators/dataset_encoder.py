"""Features and labels of a support set -> an embedding of each class and of the dataset.

A two-level Set Transformer (Lee et al., ICML 2019): images within a class, then classes within the dataset.
Invariant to the order of images, equivariant to the order of classes, for any number of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn

from pretrained_generators.attention import AttentionBlock


@dataclass(frozen=True)
class EncoderConfig:
    width: PositiveInt = 64
    inducing: Annotated[int, Field(ge=1, le=1024)] = 16  # each attends to every image: memory that no file accounts for
    heads: PositiveInt = 4
    embedding: PositiveInt = 64


class DatasetEncoder(nn.Module):
    feature_mean: torch.Tensor  # [f], over the zoo
    feature_std: torch.Tensor  # [f]

    def __init__(self, feature_dim: int, config: EncoderConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        self.project = nn.Linear(feature_dim, width)
        self.inducing = nn.Parameter(torch.randn(1, config.inducing, width) * 0.02)
        self.seed_class, self.seed_dataset = (nn.Parameter(torch.randn(1, 1, width) * 0.02) for _ in range(2))
        self.gather, self.spread, self.pool_images, self.classes, self.pool_classes = (
            AttentionBlock(width, heads) for _ in range(5)
        )
        self.out = nn.Linear(width, config.embedding)

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor, num_classes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, f] and labels [N] -> class embeddings [num_classes, width] and a dataset embedding
        [embedding] of unit mean square. A class without images has a zero embedding and no influence."""
        seen, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
        order = inverse.argsort(stable=True)
        position = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[inverse[order]]
        projected = self.project((features[order] - self.feature_mean) / self.feature_std)
        images = projected.new_zeros(len(seen), int(counts.max()), projected.shape[1])
        images[inverse[order], position] = projected
        mask = torch.arange(images.shape[1], device=labels.device) < counts[:, None]

        k = len(seen)
        summary = self.gather(self.inducing.expand(k, -1, -1), images, mask)
        images = self.spread(images, summary)
        pooled = self.pool_images(self.seed_class.expand(k, -1, -1), images, mask).transpose(0, 1)  # [1, k, width]
        pooled = self.classes(pooled)
        dataset = self.out(self.pool_classes(self.seed_dataset, pooled)[0, 0])

        class_embeddings = pooled.new_zeros(num_classes, pooled.shape[-1])
        class_embeddings[seen] = pooled[0]
        return class_embeddings, F.normalize(dataset, dim=0) * len(dataset) ** 0.5
