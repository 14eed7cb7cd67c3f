"""BatchNorm on new data that keeps how much each channel varies.

Recalibrated alone, BatchNorm brings every channel to unit variance, those too that answer to something which the new
images do not show: what is left of them is noise, and as loud as any signal. With its weight rescaled by as much, the
body computes nearly what it was trained to compute, and the statistics are still those of the images, as they are in
training: with BatchNorm left as it was, a head that was solved on its features is lost in its first steps.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo_builder.backbones import evaluating, predict
from zoo_builder.batchnorm import batchnorm_layers, equal_batches, recalibrate_batchnorm
from zoo_builder.datasets.image_dataset import spread_evenly, standardize_channels
from zoo_builder.inputs import noting_inputs

IMAGES = 256  # that deviations are measured on, at most
LOUDEST = 2.0  # a channel may vary by so many times what it did; more would be an explosion


@torch.no_grad()
def batchnorm_rescaling(body: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What to add to the BatchNorm weights of `body`, by their names, before it is recalibrated on images [N, C, H, W].

    A weight is multiplied by the ratio of its channel's deviation on the images to the one that `body` holds. Each of
    the images' channels is standardised first, so that the loader's normalisation drops out. `body` stays as it is.
    """
    normalising = batchnorm_layers(body)
    layers = {name: m for name, m in body.named_modules() if m in normalising and m.weight is not None}
    if not layers:
        return {}
    names = {m: name for name, m in layers.items()}
    held = {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in layers.items()}
    variances: dict[str, torch.Tensor] = {}  # of the layers that are run; a head for training alone is not
    chosen = spread_evenly(len(images), IMAGES)
    like = next(iter(layers.values())).weight
    batches = equal_batches(standardize_channels(images[chosen]).to(like.device, like.dtype))

    def normalise(layer: _BatchNorm, x: torch.Tensor) -> None:
        """By the mean of the batch, and the deviation that was held if the batch's is not far larger."""
        name = names[layer]
        mean, variance = (torch.zeros_like(buffer) for buffer in held[name])
        F.batch_norm(x, mean, variance, training=True, momentum=1.0)  # quicker than torch.var_mean by far
        variances[name] = variances.get(name, 0) + variance / len(batches)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(torch.maximum(variance / LOUDEST**2, held[name][1]))

    try:
        with noting_inputs(names, normalise), evaluating(body):
            for batch in batches:
                body(batch.contiguous(memory_format=torch.channels_last))
    finally:
        for name, (mean, var) in held.items():
            layers[name].running_mean.copy_(mean)
            layers[name].running_var.copy_(var)
    changes = {}
    for name, variance in variances.items():
        layer = layers[name]
        ratio = ((variance + layer.eps) / (held[name][1] + layer.eps)).sqrt()
        changes[f"{name}.weight"] = (ratio.clamp(max=LOUDEST) - 1) * layer.weight
    return changes


def signal_left(body: nn.Module, images: torch.Tensor) -> float:
    """How much the features of images [N, C, H, W] still vary where BatchNorm is rescaled and recalibrated, beside how
    much they vary as `body` is, which stays so.

    Near zero for deep bodies whose channels lean on their means, which rescaling takes from them.
    """
    chosen = images[spread_evenly(len(images), IMAGES)]
    rescaled = copy.deepcopy(body)
    for name, change in batchnorm_rescaling(body, chosen).items():
        rescaled.get_parameter(name).data.add_(change)
    recalibrate_batchnorm(rescaled, chosen)
    left, as_it_is = (predict(b, chosen).std(0).mean().item() for b in (rescaled, body))
    return left / as_it_is if as_it_is > 0 else 1.0
