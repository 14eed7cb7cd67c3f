"""Which datasets are related: embedded by what the base sees in them, then clustered."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from zoo_builder.backbones import predict


@torch.no_grad()
def embed_dataset(body: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[2 d] float32 of normalised images [N, C, H, W] with labels [N]: the mean feature, and how the classes' means
    spread about it. Each half has unit length. `body` gives features [N, d], in evaluation mode."""
    features = predict(body, images)
    means = torch.stack([features[labels == c].mean(0) for c in labels.unique()])
    return torch.cat([F.normalize(features.mean(0), dim=0), F.normalize(means.std(0, correction=0), dim=0)])


def cluster_datasets(embeddings: dict[str, torch.Tensor], max_clusters: int) -> tuple[tuple[str, ...], ...]:
    """Part the datasets into at most `max_clusters` by average linkage on cosine distance.

    As many clusters as give the best mean silhouette (Rousseeuw 1987); all in one where there are fewer than three
    datasets. In the order of their first names.
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    names = sorted(embeddings)
    if len(names) < 3 or max_clusters < 2:
        return (tuple(names),)
    points = np.stack([embeddings[n].numpy() for n in names])
    points = points - points.mean(0)  # what all datasets share says nothing of which are related
    partitions = [
        AgglomerativeClustering(count, metric="cosine", linkage="average").fit_predict(points)
        for count in range(2, min(max_clusters, len(names) - 1) + 1)
    ]
    best = max(partitions, key=lambda p: silhouette_score(points, p, metric="cosine"))
    return tuple(sorted(tuple(n for n, c in zip(names, best, strict=True) if c == cluster) for cluster in set(best)))
