"""A body whose features are of unit size, and a head that makes up for it: the model computes what it did.

AdamW moves every weight by about the learning rate, however small the weight. Without BatchNorm nothing bounds
features: those of squeezenet1_1 come to a hundred and more, a head solved on them has weights of a thousandth, and a
step of 3e-4 moves its logits by ten: what was solved is lost at once. Where layers are rectified and pooled only, their
weights may all be divided alike and the head's multiplied (positive homogeneity; Stock et al., "Equi-normalization of
Neural Networks", ICLR 2019).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from d2nwg_init.candidates import placed
from zoo_builder.backbones import evaluating
from zoo_builder.batchnorm import batchnorm_layers
from zoo_builder.classifier import find_classifier
from zoo_builder.datasets.image_dataset import spread_evenly

IMAGES = 16  # that the model is looked at with
TRIED = 0.5  # of the weights, to see how many layers follow each other


class _NotHomogeneousError(Exception):
    pass


@torch.no_grad()
def bring_features_to_unit_size(model: nn.Module, images: torch.Tensor, names: Collection[str] | None = None) -> bool:
    """Scale all layers of the body alike, in place, so that its features of images [N, C, H, W] have a mean absolute
    value of one, and the head's weights by as much the other way; whether that was done.

    It is not, and the model is as it was, with BatchNorm, whose output has a scale of its own, or where what is
    computed would change (a residual, a norm), or where a parameter of a layer is not in `names`.
    """
    head = find_classifier(model)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and m is not head.layer]
    changed = [(f"{n}.{k}", p) for n, m in layers for k, p in m.named_parameters()]
    if batchnorm_layers(model) or not layers or (names is not None and not {n for n, _ in changed} <= set(names)):
        return False
    shown = placed(images[spread_evenly(len(images), IMAGES)], model)
    as_they_were = [p.clone() for _, p in changed]

    def put_back() -> None:
        for (_, p), value in zip(changed, as_they_were, strict=True):
            p.copy_(value)

    scaled = False
    try:
        with evaluating(model):
            inputs = _inputs(model, [*(m for _, m in layers), head.layer], shown)
            size = head.features(inputs[head.layer]).abs().mean().item()
            depth = round(math.log(_scale(model, inputs, head.layer, shown, TRIED), TRIED))
            put_back()
            if depth and 0 < size < math.inf:
                head.layer.weight.div_(_scale(model, inputs, head.layer, shown, size ** (-1 / depth)))
                scaled = True
    except _NotHomogeneousError:
        pass
    finally:
        if not scaled:
            put_back()
    return scaled


def _inputs(model: nn.Module, modules: Collection[nn.Module], images: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
    """What each of the modules is given; in this order."""
    inputs: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if module in inputs:
            raise _NotHomogeneousError("called twice")
        inputs[module] = args[0].clone()

    hooks = [m.register_forward_pre_hook(note) for m in modules]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if len(inputs) < len(modules):
        raise _NotHomogeneousError("never called")
    return inputs


def _scale(
    model: nn.Module, inputs: dict[nn.Module, torch.Tensor], head: nn.Module, images: torch.Tensor, factor: float
) -> float:
    """Multiply weights by `factor` in place, biases by as much as what comes out of their layer; by how much what the
    head is given has changed."""

    def ratio(module: nn.Module, args: tuple[torch.Tensor, ...]) -> float:
        """Of what a layer is given to what it was given."""
        before, now = inputs[module], args[0]
        r = ((before * now).sum() / before.square().sum()).item()
        least = 1e-4 * r * before.abs().max().item()
        if not math.isfinite(r) or not torch.allclose(now, r * before, rtol=1e-3, atol=least):
            raise _NotHomogeneousError("not multiplied alike")
        return r

    def scale(module: nn.Conv2d | nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        came = ratio(module, args)
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor * came)

    ratios: list[float] = []
    hooks = [m.register_forward_pre_hook(scale) for m in inputs if m is not head]
    hooks.append(head.register_forward_pre_hook(lambda module, args: ratios.append(ratio(module, args))))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return ratios[0]
