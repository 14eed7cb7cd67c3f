"""Stage 2: dataset embeddings are aligned with weight latents, as CLIP aligns images with text (as in the paper)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pretrained_generators.dataset_encoder import DatasetEncoder
from pretrained_generators.training.loop import train_stage
from pretrained_generators.training.processes import all_shares, own_share
from pretrained_generators.training.recipe import EncoderStage
from pretrained_generators.training.zoo_data import ZooData, draw_support


def random_support(
    data: ZooData, entry: int, stage: EncoderStage, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A random part of an entry's support set, as the encoder takes it."""
    return draw_support(data.features[entry], data.labels[entry], stage.shots, stage.classes, generator)


def train_encoder(
    encoder: DatasetEncoder, data: ZooData, latents: torch.Tensor, stage: EncoderStage, folder: Path, seed: int
) -> None:
    """Symmetric cross-entropy between embeddings of random supports and projected latents [E, n, latent] in a batch.

    The projection of the latents serves this stage alone and is not kept.
    """
    gathered = torch.cat(data.features)
    encoder.feature_mean.copy_(gathered.mean(0))
    encoder.feature_std.copy_(gathered.std(0).clamp_min(1e-4))
    flat = latents.flatten(1)
    # The span of E latents has at most E dimensions: their coordinates in it lose nothing and are few.
    flat = flat - flat.mean(0)
    left, values, _ = torch.linalg.svd(flat, full_matrices=False)
    coordinates = left * values / values.square().mean().sqrt()
    projection = nn.Linear(coordinates.shape[1], encoder.out.out_features).to(flat.device)
    both = nn.ModuleDict({"encoder": encoder, "projection": projection})

    def loss(generator: torch.Generator) -> torch.Tensor:
        batch = torch.randperm(len(coordinates), generator=generator)[: stage.batch_size]
        supports = [random_support(data, int(i), stage, generator) for i in batch]
        embeddings = all_shares(torch.stack([encoder(*support)[1] for support in own_share(supports)]))
        keys = projection(coordinates[batch])
        similarity = F.normalize(embeddings, dim=1) @ F.normalize(keys, dim=1).T / stage.temperature
        target = torch.arange(len(batch), device=similarity.device)
        return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2

    train_stage("encoder", both, stage, loss, folder, seed)
