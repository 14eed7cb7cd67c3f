"""Deltas that are tried on a dataset before anything is generated for it.

An embedding of a dataset far from all that were seen says little; what a few known deltas are worth on it says what
kind of delta it wants, and whether it wants one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from zoo_builder.batchnorm import batchnorm_training
from zoo_builder.batchnorm_fit import BatchNormFit, fit_batchnorm
from zoo_builder.model_stack import shifted
from zoo_builder.solved_head import solve_head

IMAGES = 128  # that probes are tried on, at most
SHARPNESS = 100.0  # of the choice among probes: a loss that is lower by a hundredth of a guess's weighs e times as much
EXPLODED = 10.0  # in a guess's losses, of features that are not finite: an infinite one would spoil every mean


class Probes(nn.Module):
    latents: torch.Tensor  # [J, n, latent]
    mean: torch.Tensor  # [size], over the zoo
    std: torch.Tensor  # [size]

    def __init__(self, count: int, num_chunks: int, latent: int) -> None:
        super().__init__()
        self.size = 2 * (count + 1)  # numbers that `worth_of` gives
        self.register_buffer("latents", torch.zeros(count, num_chunks, latent))
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("std", torch.ones(self.size))

    def standardised(self, worth: torch.Tensor) -> torch.Tensor:
        return (worth - self.mean) / self.std

    def changes(self, standardised: torch.Tensor) -> torch.Tensor:
        """By how much each probe changes the loss [..., J], from what they are worth [..., size]."""
        return (standardised * self.std + self.mean).unflatten(-1, (-1, 2))[..., 1:, 0]

    def anchor(self, standardised: torch.Tensor) -> torch.Tensor:
        """Latents [..., n, latent] to start from, by what the probes are worth [..., size]: of the best one, or zero.

        Probes of close worth are mixed, others are not: between two good deltas may lie a bad one.
        """
        changes = self.changes(standardised)
        none = torch.zeros_like(changes[..., :1])
        weights = (-SHARPNESS * torch.cat([none, changes], dim=-1)).softmax(-1)[..., 1:]
        return torch.einsum("...j,jnl->...nl", weights, self.latents)


@torch.no_grad()
def worth_of(
    base: nn.Module,
    deltas: Iterable[Mapping[str, torch.Tensor]],
    images: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    batchnorm: BatchNormFit,
) -> torch.Tensor:
    """What each of D deltas is worth on images [N, C, H, W] with labels [N], as [1 + D, 2].

    The first row is the loss and the accuracy of the base, fitted, with a solved head, each image left out once; the
    others are by how much a delta changes them. The loss is in units of a guess's. BatchNorm has the statistics of the
    images; those that `base` holds stay.
    """
    images = images.contiguous(memory_format=torch.channels_last)

    def measure(delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
        body = {k: v.clone() for k, v in shifted(state, delta).items()}
        features = functional_call(base, body, (images,))
        if not torch.isfinite(features).all():
            return features.new_tensor([EXPLODED, 0.0])
        logits = solve_head(features, labels, num_classes).left_out_logits
        loss = F.cross_entropy(logits, labels) / math.log(max(num_classes, 2))  # of one class the loss is 0
        return torch.stack([loss, (logits.argmax(1) == labels).float().mean()])

    fit = fit_batchnorm(base, images, batchnorm)
    with batchnorm_training(base):
        state = shifted(base.state_dict(), fit)
        own = measure({})
        return torch.stack([own, *(measure(delta) - own for delta in deltas)])
