"""Stage 4: what generated weights are worth, back-propagated through solved head, BatchNorm and decoder to the
diffusion and the encoder.

The stages before imitate zoo entries, and can be no better than they are. Here the loss is that of a user's: images of
a dataset condition the generator, its weights go into the body, and each image is judged by the head that is solved
without it (as the episodes of the zoo's tasks, with the whole generator in place of the body).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from pretrained_generators.generator import Generator
from pretrained_generators.latent_diffusion import TRAIN_TIMESTEPS, LatentDiffusion, noise_schedule
from pretrained_generators.training.episodes import Episode, EpisodeSource
from pretrained_generators.training.loop import train_stage
from pretrained_generators.training.processes import own_share
from pretrained_generators.training.recipe import FunctionalStage
from zoo_builder.backbones import prepare_images
from zoo_builder.batchnorm import batchnorm_training
from zoo_builder.batchnorm_fit import BatchNormFit, fit_batchnorm
from zoo_builder.model_stack import shifted
from zoo_builder.small_maps import SmallMaps
from zoo_builder.solved_head import left_out_loss


def train_functional(
    generator: Generator, source: EpisodeSource, stage: FunctionalStage, folder: Path, seed: int
) -> None:
    """The left-out loss of episodes under the fitted base + a generated delta, down to encoder and diffusion.

    The decoder stays: trained too it fell back, within a few hundred steps, to one delta for all datasets.
    """
    diffusion = generator.diffusion
    trained = nn.ModuleDict({"encoder": generator.encoder, "diffusion": diffusion})
    schedule, body, base = noise_schedule(), generator.base_copy(), generator.base.state_dict()

    def one(draw: int) -> torch.Tensor:
        noise, rng = torch.Generator().manual_seed(draw), np.random.default_rng(draw)
        episode = source.draw(stage.batch_size, rng).to(diffusion.latent_mean.device)
        dropped = rng.random() < stage.drop_condition
        condition = diffusion.null_condition if dropped else _condition(generator, episode)
        clean = _generate(diffusion, condition[None], schedule, noise, rng)
        latent = clean * diffusion.latent_std + diffusion.latent_mean
        if not dropped:
            latent = latent + generator.anchor(condition)
        delta = generator.to_delta(generator.vae.decode(latent)[0])
        return episode_loss(body, base, delta, episode, generator.config.batchnorm)

    def loss(noise: torch.Generator) -> torch.Tensor:
        draws = torch.randint(1 << 31, (stage.episodes,), generator=noise)
        return torch.stack([one(int(draw)) for draw in own_share(draws)]).mean()

    for part in (generator.base, generator.vae):
        part.requires_grad_(False)
    train_stage("functional", trained, stage, loss, folder, seed)


def _condition(generator: Generator, episode: Episode) -> torch.Tensor:
    """[c] of half of the images of each class: the others have it new; differentiable in the encoder."""
    images, labels = prepare_images(generator.base, episode.images[::2]), episode.labels[::2]
    embedding = generator.encoder(generator.features(images), labels, episode.num_classes)[1]
    return generator.with_probes(embedding, images, labels, episode.num_classes)


def _generate(
    diffusion: LatentDiffusion, condition: torch.Tensor, schedule: Any, noise: torch.Generator, rng: np.random.Generator
) -> torch.Tensor:
    """The clean latent [1, n, latent] that is predicted from pure noise or, in half of the draws, one more time from
    that prediction with less noise: the two kinds of step that a sampler takes."""
    shape, device = (1, *diffusion.latent_mean.shape), diffusion.latent_mean.device
    last = torch.tensor([TRAIN_TIMESTEPS - 1], device=device)
    start = torch.randn(shape, generator=noise).to(device)
    if rng.random() < 0.5:
        return diffusion(start, last, condition)
    with torch.no_grad():
        first = diffusion(start, last, condition)
    t = torch.randint(TRAIN_TIMESTEPS, (1,), generator=noise).to(device)
    noisy = schedule.add_noise(first, torch.randn(shape, generator=noise).to(device), t)
    return diffusion(noisy, t, condition)


def episode_loss(
    body: nn.Module,
    base: Mapping[str, torch.Tensor],
    delta: Mapping[str, torch.Tensor],
    episode: Episode,
    batchnorm: BatchNormFit,
) -> torch.Tensor:
    """`left_out_loss` of the features of the fitted base + delta, with the episode's own BatchNorm statistics;
    differentiable in `delta`. `body` holds the base."""
    images = prepare_images(body, episode.images)
    state = shifted({k: v.clone() for k, v in base.items()}, fit_batchnorm(body, images, batchnorm))
    with batchnorm_training(body), SmallMaps():  # and without dropout, which would draw from the global random state
        features = functional_call(body, shifted(state, delta), (images,))
    return left_out_loss(features.float(), episode.labels, episode.num_classes)
