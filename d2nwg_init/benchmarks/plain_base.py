"""The base of a bundle as a rival has it, with which nothing is generated."""

from __future__ import annotations

import torch

from pretrained_generators.generator import Generator


def plain_base(generator: Generator, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Its parameters, for BatchNorm to be recalibrated on `images` [N, C, H, W]: as they are, or absorbing the
    statistics of the images where recalibrating alone would destroy it."""
    return generator.fitted_base(images) if generator.config.batchnorm == "absorbed" else generator.base_parameters()
