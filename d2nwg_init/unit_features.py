"""A body whose features are of unit size, and a head that makes up for it: the model computes what it did.

AdamW moves every weight by about the learning rate, however small the weight. Without normalisation nothing bounds
features (squeezenet1_1): where they are large a head solved on them has tiny weights, and is lost in the first steps.
Where layers are rectified and pooled only, their weights may all be divided alike and the head's multiplied (positive
homogeneity; Stock et al., "Equi-normalization of Neural Networks", ICLR 2019).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from d2nwg_init.candidates import placed
from d2nwg_init.undo import unchanged_on_error
from zoo_builder.backbones import evaluating, is_norm
from zoo_builder.classifier import find_classifier
from zoo_builder.datasets.image_dataset import spread_evenly
from zoo_builder.inputs import noting_inputs

IMAGES = 16  # that the model is looked at with
TRIED = 0.5  # of the weights, to see how many layers follow each other


class _CannotBeScaledError(Exception):
    pass


@torch.no_grad()
def bring_features_to_unit_size(model: nn.Module, images: torch.Tensor, names: Collection[str] | None = None) -> bool:
    """Scale all layers of the body alike, in place, so that its features of images [N, C, H, W] have a mean absolute
    value of one, and the head's weights by as much the other way; whether that was done.

    It is not, and the model is as it was, with a normalisation layer, whose output has a scale of its own, or where
    what is computed would change (a residual), or where a parameter of a layer is not in `names`.
    """
    head = find_classifier(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and m is not head.layer}
    changed = {f"{name}.{k}" for name, layer in layers.items() for k, _ in layer.named_parameters()}
    if not layers or any(is_norm(m) for m in model.modules()) or (names is not None and not changed <= set(names)):
        return False
    shown = placed(images[spread_evenly(len(images), IMAGES)], model)
    try:
        with unchanged_on_error(model) as as_it_was, evaluating(model):
            inputs = _inputs(model, [*layers.values(), head.layer], shown)
            size = head.features(inputs[head.layer]).abs().mean().item()
            depth = round(math.log(_scale(model, inputs, head.layer, shown, TRIED), TRIED))
            as_it_was()
            if not depth or not 0 < size < math.inf:
                raise _CannotBeScaledError("the body changes nothing, or gives nothing")
            head.layer.weight.div_(_scale(model, inputs, head.layer, shown, size ** (-1 / depth)))
    except _CannotBeScaledError:
        return False
    return True


def _inputs(model: nn.Module, modules: Collection[nn.Module], images: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
    """What each of the modules is given; in this order."""
    inputs: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, x: torch.Tensor) -> None:
        if module in inputs:
            raise _CannotBeScaledError("called twice")
        inputs[module] = x.clone()

    with noting_inputs(modules, note):
        model(images)
    if len(inputs) < len(modules):
        raise _CannotBeScaledError("never called")
    return inputs


def _scale(
    model: nn.Module, inputs: dict[nn.Module, torch.Tensor], head: nn.Module, images: torch.Tensor, factor: float
) -> float:
    """Multiply weights by `factor` in place, biases by as much as what comes out of their layer; by how much what the
    head is given has changed."""

    def ratio(module: nn.Module, now: torch.Tensor) -> float:
        """Of what a layer is given to what it was given."""
        before = inputs[module]
        r = ((before * now).sum() / before.square().sum()).item()
        least = 1e-4 * r * before.abs().max().item()
        if not math.isfinite(r) or not torch.allclose(now, r * before, rtol=1e-3, atol=least):
            raise _CannotBeScaledError("not multiplied alike")
        return r

    def scale(module: nn.Conv2d | nn.Linear, now: torch.Tensor) -> None:
        came = ratio(module, now)
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor * came)

    ratios: list[float] = []
    scaled = [m for m in inputs if m is not head]
    with noting_inputs(scaled, scale), noting_inputs([head], lambda *called: ratios.append(ratio(*called))):
        model(images)
    return ratios[0]
