"""Dataset embedding + noise -> latent tokens: a small DiT that predicts the clean latent, and its sampler.

The noise schedule and the solver are diffusers'. Latents are standardised inside, so that callers never see the scale.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from pretrained_generators.attention import AttentionBlock

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class DiffusionConfig:
    width: PositiveInt = 128
    depth: NonNegativeInt = 4
    heads: PositiveInt = 4


class LatentDiffusion(nn.Module):
    latent_mean: torch.Tensor  # [n, latent], over the zoo
    latent_std: torch.Tensor  # [n, latent]

    def __init__(self, num_tokens: int, latent: int, condition: int, config: DiffusionConfig) -> None:
        super().__init__()
        width = config.width
        if width % 2:
            raise ValueError(f"A width of {width} cannot hold as many sines as cosines.")
        self.register_buffer("latent_mean", torch.zeros(num_tokens, latent))
        self.register_buffer("latent_std", torch.ones(num_tokens, latent))
        self.token_in = nn.Linear(latent, width)
        self.place = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition, width)
        self.null_condition = nn.Parameter(torch.zeros(condition))
        self.blocks = nn.ModuleList(AttentionBlock(width, config.heads, width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.token_out = nn.Linear(width, latent)
        nn.init.zeros_(self.token_out.weight)
        nn.init.zeros_(self.token_out.bias)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Standardised noisy latents [B, n, latent] at timesteps [B] under conditions [B, c] -> clean ones."""
        half = self.place.shape[1] // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=noisy.device) / half)
        angles = timesteps[:, None].float() * frequencies
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1).to(noisy)) + self.condition(condition)
        h = self.token_in(noisy) + self.place
        for block in self.blocks:
            h = block(h, condition=c)
        return self.token_out(self.norm(h))

    @torch.no_grad()
    def sample(
        self,
        condition: torch.Tensor | None,
        num_samples: int,
        generator: torch.Generator,
        steps: int = 20,
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """Latents [num_samples, n, latent] for one condition [c]; None is no condition.

        `guidance` above 1 moves away from what no condition would give (Ho & Salimans 2022). Deterministic in the
        generator's state.
        """
        scheduler = noise_schedule()
        with warnings.catch_warnings():  # numpy's, of how the scheduler makes an array
            warnings.simplefilter("ignore", DeprecationWarning)
            scheduler.set_timesteps(steps)
        shape = (num_samples, *self.latent_mean.shape)
        x = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.latent_mean)
        null = self.null_condition.expand(num_samples, -1)
        given = null if condition is None else condition.expand(num_samples, -1)
        for t in scheduler.timesteps:
            times = t.to(x.device).expand(num_samples)
            clean = self(x, times, given)
            if guidance != 1.0 and condition is not None:
                unconditional = self(x, times, null)
                clean = unconditional + guidance * (clean - unconditional)
            x = scheduler.step(clean, t, x).prev_sample
        return x * self.latent_std + self.latent_mean


def noise_schedule() -> Any:
    """Cosine noise, DPM-Solver++ (2M) in its clean-sample form; no clipping, for latents are unbounded."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )
