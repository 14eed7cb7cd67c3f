"""BatchNorm statistics from the train data. Weights that changed, or a new dataset, make the stored ones wrong."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def recalibrate_batchnorm(model: nn.Module, images: torch.Tensor, batch_size: int = 256) -> int:
    """Replace running means and variances by the average over batches of `images` [N, C, H, W]; returns the layers.

    Only BatchNorm layers run in training mode; each module's own mode and momentum are put back.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    modes = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average over the batches
        layer.train()
    try:
        with torch.no_grad():
            # Batches of equal size, so that each counts the same and none is a single image.
            for batch in images.tensor_split(max(1, round(len(images) / batch_size))):
                model(batch)
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return len(layers)
