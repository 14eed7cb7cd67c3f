"""BatchNorm statistics from the train data. Weights that changed, or a new dataset, make the stored ones wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo_builder.attention_cache import biased_attention


def recalibrate_batchnorm(model: nn.Module, images: torch.Tensor, batch_size: int = 256) -> int:
    """Replace running means and variances by the average over batches of `images` [N, C, H, W]; returns the layers.

    Only BatchNorm layers run in training mode; each module's own mode and momentum are put back. A layer that the model
    does not come by in evaluation mode, as of Inception's second head, keeps its statistics.
    """
    with batchnorm_training(model) as layers, torch.no_grad():
        before = [[b.clone() for b in layer.buffers()] for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average over the batches
        for batch in equal_batches(images, batch_size) if layers else ():
            model(batch)
        for layer, values in zip(layers, before, strict=True):
            if not layer.num_batches_tracked:
                for buffer, value in zip(layer.buffers(), values, strict=True):
                    buffer.copy_(value)
    return len(layers)


@contextmanager
def batchnorm_training(model: nn.Module) -> Iterator[list[_BatchNorm]]:
    """Inside, BatchNorm layers with statistics are in training mode and all else in evaluation mode, but for attention
    that would keep biases: weights may be trained, or substituted."""
    layers = batchnorm_layers(model)
    modes = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in layers]
    model.eval()
    for module in (*layers, *biased_attention(model)):
        module.training = True
    try:
        yield layers
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Those that keep statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def equal_batches(images: torch.Tensor, batch_size: int = 256) -> tuple[torch.Tensor, ...]:
    """Of about `batch_size` images, so that each counts the same and none is a single image."""
    return images.tensor_split(max(1, round(len(images) / batch_size)))
