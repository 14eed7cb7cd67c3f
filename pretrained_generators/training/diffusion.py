"""Stage 3: the diffusion model learns to draw latents for a dataset embedding; VAE and encoder stay as they are."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrained_generators.dataset_encoder import DatasetEncoder
from pretrained_generators.latent_diffusion import TRAIN_TIMESTEPS, LatentDiffusion, noise_schedule
from pretrained_generators.training.encoder import random_support
from pretrained_generators.training.loop import train_stage
from pretrained_generators.training.processes import own_share
from pretrained_generators.training.recipe import DiffusionStage, EncoderStage
from pretrained_generators.training.zoo_data import ZooData

VIEWS = 48  # embeddings of each dataset, made once


def train_diffusion(
    diffusion: LatentDiffusion,
    encoder: DatasetEncoder,
    data: ZooData,
    latents: torch.Tensor,
    stage: DiffusionStage,
    supports: EncoderStage,
    folder: Path,
    seed: int,
) -> None:
    """Mean squared error of the predicted clean latent, each number weighted by its variance in the zoo, so that the
    loss is an error of weights and not of unit-variance noise directions. Without steps it goes on giving zero."""
    std, mean = torch.std_mean(latents, dim=0)
    diffusion.latent_std.copy_(std.clamp_min(1e-4))
    if not stage.steps:
        return
    diffusion.latent_mean.copy_(mean)
    standardised = (latents - diffusion.latent_mean) / diffusion.latent_std
    weight = std.square() / std.square().mean()
    schedule = noise_schedule()
    embeddings = _embeddings(encoder, data, supports, seed)

    def loss(generator: torch.Generator) -> torch.Tensor:
        size = stage.batch_size
        drawn = (
            torch.randint(len(standardised), (size,), generator=generator),
            torch.randint(VIEWS, (size,), generator=generator),
            torch.rand(size, 1, generator=generator) < stage.drop_condition,
            torch.randn(size, *standardised.shape[1:], generator=generator),
            torch.randint(TRAIN_TIMESTEPS, (size,), generator=generator),
        )
        batch, view, dropped, noise, t = (own_share(d).to(standardised.device) for d in drawn)
        condition = torch.cat([embeddings[batch, view], data.probed[batch]], dim=1)
        condition = torch.where(dropped, diffusion.null_condition, condition)
        clean = standardised[batch]
        predicted = diffusion(schedule.add_noise(clean, noise, t), t, condition)
        return (weight * (predicted - clean).square()).mean()

    train_stage("diffusion", diffusion, stage, loss, folder, seed)


@torch.no_grad()
def _embeddings(encoder: DatasetEncoder, data: ZooData, supports: EncoderStage, seed: int) -> torch.Tensor:
    """[E, VIEWS, c]: each entry's dataset as random parts of its support show it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [
            torch.stack([encoder(*random_support(data, i, supports, generator))[1] for _ in range(VIEWS)])
            for i in range(len(data.features))
        ]
    )
