"""Stage 3: the diffusion model learns to draw latents for a dataset embedding; VAE and encoder stay as they are."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrained_generators.dataset_encoder import DatasetEncoder
from pretrained_generators.latent_diffusion import TRAIN_TIMESTEPS, LatentDiffusion, noise_schedule
from pretrained_generators.training.encoder import embed_random_support
from pretrained_generators.training.loop import train_stage
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
        batch = torch.randint(len(standardised), (stage.batch_size,), generator=generator)
        view = torch.randint(VIEWS, (stage.batch_size,), generator=generator)
        condition = torch.cat([embeddings[batch, view], data.probed[batch]], dim=1)
        dropped = torch.rand(stage.batch_size, 1, generator=generator) < stage.drop_condition
        condition = torch.where(dropped, diffusion.null_condition, condition)
        clean = standardised[batch]
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(TRAIN_TIMESTEPS, (stage.batch_size,), generator=generator)
        predicted = diffusion(schedule.add_noise(clean, noise, t), t, condition)
        return (weight * (predicted - clean).square()).mean()

    train_stage("diffusion", diffusion, stage, loss, folder, seed)


@torch.no_grad()
def _embeddings(encoder: DatasetEncoder, data: ZooData, supports: EncoderStage, seed: int) -> torch.Tensor:
    """[E, VIEWS, c]: each entry's dataset as random parts of its support show it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [
            torch.stack([embed_random_support(encoder, data, i, supports, generator) for _ in range(VIEWS)])
            for i in range(len(data.features))
        ]
    )
