"""Latent tokens <-> chunks of weights: one token a chunk, so that the latent grows with the weights.

Chunks at different places of a network have nothing in common, so the first and last maps are bases of their own
for each place, which start at the truncated SVD of the zoo; transformers on either side of the latent learn what
the places know of each other. Their last layers start at zero: training starts from the linear optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from pretrained_generators.attention import AttentionBlock

NARROWEST = 1e-3  # of a place's widest direction: the least that a coefficient is divided by, but for
LEAST = 1e-4  # which half precision can hold


@dataclass(frozen=True)
class VAEConfig:
    latent: PositiveInt = 12  # numbers in a latent token
    width: PositiveInt = 96
    depth: NonNegativeInt = 2
    heads: PositiveInt = 4


class WeightVAE(nn.Module):
    coefficient_std: torch.Tensor  # [num_chunks, latent]

    def __init__(self, num_chunks: int, chunk: int, config: VAEConfig) -> None:
        super().__init__()
        latent, width = config.latent, config.width
        self.mean = nn.Parameter(torch.zeros(num_chunks, chunk))
        self.basis = nn.Parameter(torch.zeros(num_chunks, latent, chunk))
        self.register_buffer("coefficient_std", torch.ones(num_chunks, latent))
        self.encoder_in, self.decoder_in = nn.Linear(latent, width), nn.Linear(latent, width)
        self.encoder_place, self.decoder_place = (nn.Parameter(torch.randn(num_chunks, width) * 0.02) for _ in range(2))
        self.encoder, self.decoder = (
            nn.ModuleList(AttentionBlock(width, config.heads) for _ in range(config.depth)) for _ in range(2)
        )
        self.encoder_out, self.decoder_out = nn.Linear(width, 2 * latent), nn.Linear(width, latent)
        for layer in (self.encoder_out, self.decoder_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.encoder_out.bias[latent:], -6.0)  # log-variance: little noise at first

    @torch.no_grad()
    def start_at_svd(self, chunks: torch.Tensor) -> None:
        """Set bases and scales from zoo chunks [E, num_chunks, chunk]: each place's truncated SVD.

        About zero, not about the mean: no delta at all must have a latent too.
        """
        self.mean.zero_()
        for place in range(chunks.shape[1]):
            _, values, vectors = torch.linalg.svd(chunks[:, place], full_matrices=False)
            rank = min(self.basis.shape[1], len(values))
            std = values[:rank] / len(chunks) ** 0.5
            self.basis[place, :rank] = vectors[:rank]
            # Where few weights of a place ever change, some directions hold nothing. They turn to the others in
            # training, and what is divided by next to nothing explodes.
            self.coefficient_std[place, :rank] = std.clamp_min(max(NARROWEST * std[0].item(), LEAST))

    def encode(self, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, num_chunks, chunk] -> mean and log-variance of the latent, each [B, num_chunks, latent]."""
        x = torch.einsum("bnc,nlc->bnl", chunks - self.mean, self.basis) / self.coefficient_std
        h = self.encoder_in(x) + self.encoder_place
        for block in self.encoder:
            h = block(h)
        mean, log_variance = self.encoder_out(h).chunk(2, dim=-1)
        return x + mean, log_variance

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, num_chunks, latent] -> [B, num_chunks, chunk]."""
        h = self.decoder_in(latent) + self.decoder_place
        for block in self.decoder:
            h = block(h)
        x = (latent + self.decoder_out(h)) * self.coefficient_std
        return self.mean + torch.einsum("bnl,nlc->bnc", x, self.basis)
