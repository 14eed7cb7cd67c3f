"""How the BatchNorm of a base meets the images of a dataset, before deltas are added to it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from zoo_builder.absorbed_statistics import batchnorm_absorbing
from zoo_builder.datasets.image_dataset import spread_evenly, standardize_channels
from zoo_builder.rescaling import IMAGES, batchnorm_rescaling, signal_left

# Of a base that survives it, rescaled: a head that is solved on it keeps more in the first steps of a training.
BatchNormFit = Literal["rescaled", "absorbed"]
LOST = 0.1  # of how much features varied: with less left a base is lost


def fit_batchnorm(base: nn.Module, images: torch.Tensor, fit: BatchNormFit) -> dict[str, torch.Tensor]:
    """What to add to the BatchNorm parameters of `base`, by their names, before it is recalibrated on images
    [N, C, H, W], in any normalisation. `base` stays as it is."""
    if fit == "rescaled":
        return batchnorm_rescaling(base, images)
    parameter = next(base.parameters())
    chosen = standardize_channels(images[spread_evenly(len(images), IMAGES)])
    return batchnorm_absorbing(base, chosen.to(parameter, memory_format=torch.channels_last))


def is_lost(base: nn.Module, images: torch.Tensor) -> bool:
    """Whether rescaled for images [N, C, H, W] the features of `base` hardly vary any more."""
    return signal_left(base, images) < LOST
