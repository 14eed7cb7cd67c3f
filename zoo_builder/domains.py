"""Whole datasets seen through another eye: each gives a zoo a new domain at no cost in data.

A domain is fixed by its name and a seed, so that it is a dataset of its own and not an augmentation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from zoo_builder.errors import RecipeError, nearest_names


def _recolour(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Dark and light take two random colours; hues turn with them."""
    dark, light = (torch.rand(3, 1, 1, generator=generator) for _ in range(2))
    while (dark - light).abs().sum() < 0.9:  # keep the picture legible
        dark, light = (torch.rand(3, 1, 1, generator=generator) for _ in range(2))
    return dark + x * (light - dark)


def _many_colours(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image takes two random colours of its own, and is a little blurred: as lettering in the street."""
    dark, light = (torch.rand(len(x), 3, 1, 1, generator=generator) for _ in range(2))
    faint = (dark - light).abs().sum(1, keepdim=True) < 0.6
    light = torch.where(faint, (dark + 0.5) % 1, light)
    return dark + _resample(x, 0.5, "bilinear") * (light - dark)


def _rotate(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rot90(x, int(torch.randint(1, 4, (1,), generator=generator)), (2, 3))


def _edges(x: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    gray = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).view(1, 1, 3, 3)
    size = (F.conv2d(gray, sobel).square() + F.conv2d(gray, sobel.transpose(2, 3)).square()).sqrt()
    return size.clamp(0, 1).expand(-1, 3, -1, -1)


def _resample(x: torch.Tensor, factor: float, mode: str) -> torch.Tensor:
    small = F.interpolate(x, scale_factor=factor, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, size=x.shape[-2:], mode=mode)


DOMAINS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "plain": lambda x, _: x,
    "invert": lambda x, _: 1 - x,
    "gray": lambda x, _: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "recolour": _recolour,
    "rotate": _rotate,
    "blur": lambda x, _: _resample(x, 0.3, "bilinear"),
    "pixelate": lambda x, _: _resample(x, 0.25, "nearest"),
    "coarse": lambda x, _: _resample(x, 0.125, "bilinear"),
    "many_colours": _many_colours,
    "edges": _edges,
}


def apply_domain(images: torch.Tensor, domain: str, seed: int) -> torch.Tensor:
    """uint8 [N, 3, H, W] -> the same shape, as `domain` with `seed` sees it."""
    if domain not in DOMAINS:
        raise RecipeError(f"unknown domain {domain!r}; {nearest_names(domain, DOMAINS)}")
    if domain == "plain":
        return images
    out = torch.empty_like(images)
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024].float() / 255
        part = DOMAINS[domain](part, torch.Generator().manual_seed(seed))  # one look for all parts
        out[start : start + 1024] = (part * 255).round().clamp(0, 255).byte()
    return out
