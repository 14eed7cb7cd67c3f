"""BatchNorm with the statistics of new images, in a body that computes what it did.

A layer computes weight * (x - mean) / deviation + bias. With the mean and deviation of the images in place of those
that it holds, and a weight and a bias that make up for it, nothing changes; but a batch of a training then has the
statistics that the layer holds, and a head that was solved on the body's features is not lost in the first steps.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo_builder.backbones import evaluating
from zoo_builder.batchnorm import batchnorm_layers, equal_batches
from zoo_builder.inputs import noting_inputs


def can_absorb(model: nn.Module, names: Collection[str] | None = None) -> bool:
    """Whether there is BatchNorm that holds statistics, all of it with weights and biases of its own, which are in
    `names`."""
    layers = batchnorm_layers(model)
    if not layers or any(m.weight is None for m in layers):
        return False
    held = {id(p) for m in layers for p in m.parameters()}
    if len(held) < 2 * len(layers):  # tied: what one makes up for is not what another needs
        return False
    return names is None or {n for n, p in model.named_parameters() if id(p) in held} <= set(names)


@torch.no_grad()
def absorb_statistics(model: nn.Module, images: torch.Tensor) -> None:
    """Give BatchNorm the statistics of images [N, C, H, W], as the model takes them, and weights and biases with which
    the model computes what it did, in place."""
    for layer, (mean, variance) in _statistics(model, images).items():
        weight, bias = _making_up(layer, mean, variance)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        layer.running_mean.copy_(mean)  # type: ignore[union-attr]
        layer.running_var.copy_(variance)  # type: ignore[union-attr]


@torch.no_grad()
def batchnorm_absorbing(body: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What to add to the BatchNorm weights and biases of `body`, by their names, so that with the statistics of images
    [N, C, H, W] it computes what it did. `body`, of which `can_absorb` holds, stays as it is."""
    names = {module: name for name, module in body.named_modules()}
    changes = {}
    for layer, (mean, variance) in _statistics(body, images).items():
        weight, bias = _making_up(layer, mean, variance)
        changes[f"{names[layer]}.weight"] = weight - layer.weight
        changes[f"{names[layer]}.bias"] = bias - layer.bias
    return changes


def _statistics(model: nn.Module, images: torch.Tensor) -> dict[_BatchNorm, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance [C] of what each BatchNorm layer is called with, as the model is."""
    found: dict[_BatchNorm, list[torch.Tensor]] = {m: [] for m in batchnorm_layers(model)}  # [2, C] of each call

    def measure(layer: _BatchNorm, x: torch.Tensor) -> None:
        mean, variance = torch.zeros_like(layer.weight), torch.zeros_like(layer.weight)
        F.batch_norm(x, mean, variance, training=True, momentum=1.0)  # quicker than torch.var_mean by far
        found[layer].append(torch.stack([mean, variance]))

    with noting_inputs(found, measure), evaluating(model):
        for batch in equal_batches(images):
            model(batch)
    return {layer: tuple(torch.stack(calls).mean(0)) for layer, calls in found.items() if calls}


def _making_up(layer: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias [C] with which the layer, of this mean and variance, computes what it does now."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    held = (layer.running_var + layer.eps).sqrt()
    bias = layer.bias + layer.weight * (mean - layer.running_mean) / held
    return layer.weight * ((variance + layer.eps).sqrt() / held), bias
