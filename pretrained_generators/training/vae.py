"""Stage 1: the VAE learns to rebuild zoo deltas from few numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrained_generators.training.loop import has_begun, train_stage
from pretrained_generators.training.recipe import VAEStage
from pretrained_generators.weight_vae import WeightVAE


def mix_entries(chunks: torch.Tensor, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Random convex mixtures of two each of the entries and the base, which is no delta: between models of one basin
    lie more models of it, and between the base and an entry weaker ones."""
    first, second = (torch.randint(len(chunks) + 1, (batch_size,), generator=generator) for _ in range(2))
    share = torch.rand(batch_size, 1, 1, generator=generator)
    share = torch.where(torch.rand(share.shape, generator=generator) < 0.5, share, torch.ones(()))
    return share * _or_none(chunks, first) + (1 - share) * _or_none(chunks, second)


def _or_none(chunks: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The chunks at `index`, and zero where it is behind their end."""
    there = index < len(chunks)
    return chunks[index.where(there, 0)] * there[:, None, None]


def train_vae(vae: WeightVAE, chunks: torch.Tensor, stage: VAEStage, folder: Path, seed: int) -> None:
    """Squared error in standardised space plus the KL term (Kingma & Welling 2014), relative to the zoo's variance."""
    if not has_begun("vae", folder):  # the SVD of a large zoo takes minutes, and what is read has replaced it
        vae.start_at_svd(chunks)
    unit = chunks.var(0, correction=0).mean()

    def loss(generator: torch.Generator) -> torch.Tensor:
        x = mix_entries(chunks, stage.batch_size, generator)
        mean, log_variance = vae.encode(x)
        noise = torch.randn(mean.shape, generator=generator)
        spread = (0.5 * log_variance).exp() + stage.noise
        error = (vae.decode(mean + spread * noise) - x).square().mean() / unit
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error + stage.kl_weight * kl

    train_stage("vae", vae, stage, loss, folder, seed)


@torch.no_grad()
def encode_all(vae: WeightVAE, chunks: torch.Tensor) -> torch.Tensor:
    """The mean latents [E, n, latent] of zoo chunks."""
    return torch.cat([vae.encode(part)[0] for part in chunks.split(16)])
