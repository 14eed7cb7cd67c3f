"""Deltas that are tried on a dataset before anything is generated for it.

An embedding of a dataset far from all that were seen says little; what a few known deltas are worth on it says what
kind of delta it wants, and whether it wants one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from zoo_builder.batchnorm import batchnorm_training
from zoo_builder.model_stack import shifted
from zoo_builder.solved_head import solve_head

IMAGES = 256  # that probes are tried on, at most


class Probes(nn.Module):
    latents: torch.Tensor  # [J, n, latent]
    mean: torch.Tensor  # [size], over the zoo
    std: torch.Tensor  # [size]

    def __init__(self, count: int, num_chunks: int, latent: int) -> None:
        super().__init__()
        self.size = 2 * (count + 1)  # numbers that `worth` gives
        self.register_buffer("latents", torch.zeros(count, num_chunks, latent))
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("std", torch.ones(self.size))

    @torch.no_grad()
    def worth(
        self,
        base: nn.Module,
        deltas: Sequence[Mapping[str, torch.Tensor]],
        images: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
    ) -> torch.Tensor:
        """[size]: loss and accuracy of the base with a solved head on images [N, C, H, W] with labels [N], each left
        out once, then by how much each of the deltas changes them. The loss is in units of a guess's. The base's
        statistics of BatchNorm stay; each body has those of the images."""
        chosen = torch.linspace(0, len(labels) - 1, min(IMAGES, len(labels))).round().long()
        images, labels = images[chosen], labels[chosen]
        found = []
        with batchnorm_training(base):
            state = dict(base.state_dict())
            for delta in ({}, *deltas):
                body = {k: v.clone() for k, v in shifted(state, delta).items()}
                features = functional_call(base, body, (images,))
                logits = solve_head(features, labels, num_classes).left_out_logits
                loss = F.cross_entropy(logits, labels) / math.log(num_classes)
                found.append(torch.stack([loss, (logits.argmax(1) == labels).float().mean()]))
        own, others = found[0], [f - found[0] for f in found[1:]]
        return torch.cat([own, *others])

    def standardised(self, worth: torch.Tensor) -> torch.Tensor:
        return ((worth - self.mean) / self.std).clamp(-4, 4)
