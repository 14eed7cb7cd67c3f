"""Whether a model takes the images of a loader, told before any work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init.accepted_model import first_weight, give_copies
from zoo_builder.backbones import evaluating
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import DataError, ModelError
from zoo_builder.inputs import noting_inputs
from zoo_builder.support_set import SupportSet


def check_images_fit(model: nn.Module, support: SupportSet, solve: bool) -> None:
    """Run two images through the model, so that a wrong size or channel count, or a head to solve that is more than a
    layer, is named before any work. One that changes its input in place is given copies from then on."""
    weight, head = first_weight(model), find_classifier(model)
    images = support.images[:2].to(weight.device, weight.dtype)
    given = images.clone()
    try:
        with _caught_outputs(head.layer) as outputs, evaluating(model):
            logits = model(given)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as e:
        _explain(model, support.images, e)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, support.num_classes):
        came = f"{list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        advice = "Pass an image classifier of timm or torchvision."
        if isinstance(logits, tuple | list | Mapping):
            advice = "It has several outputs: wrap it in a module that gives the logits alone."
        raise ModelError(
            f"{type(model).__name__} gives {came} for two images, expected logits [2, {support.num_classes}] of its "
            f"last layer, {head.name}. {_unpooled(model) or advice}"
        )
    if solve and torch.isfinite(logits).all() and not any(_alike(logits, v) for v in _logits_of(head.layer, outputs)):
        raise ModelError(
            f"The logits of {type(model).__name__} are not those of its last layer, {head.name}: something is done to "
            "them, or the layer is no plain nn.Linear, and a head solved for it would not do what it promises."
        )
    if not torch.equal(given, images):
        give_copies(model)


@contextmanager
def _caught_outputs(layer: nn.Linear | nn.Conv2d) -> Iterator[list[torch.Tensor]]:
    """What a plain `layer` gives at each call inside: computed there and then, as autocast may be open there."""
    outputs: list[torch.Tensor] = []
    plain = F.linear if isinstance(layer, nn.Linear) else F.conv2d
    weight, bias = layer.weight, layer.bias
    with noting_inputs([layer], lambda _, x: outputs.append(plain(x.to(weight.dtype), weight, bias))):
        yield outputs


def _logits_of(layer: nn.Linear | nn.Conv2d, outputs: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Logits that a model may have of its classifier's only call: a convolution's are pooled, rectified or not."""
    if len(outputs) != 1:
        return
    if isinstance(layer, nn.Linear):
        yield outputs[0]
    else:
        yield from (outputs[0].mean((2, 3)), outputs[0].relu().mean((2, 3)))


def _alike(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    rounding = max(1e-3, torch.finfo(expected.dtype).eps)  # bfloat16 has two digits
    tolerance = rounding * float(expected.abs().max())
    return logits.shape == expected.shape and torch.allclose(logits, expected.to(logits), rtol=rounding, atol=tolerance)


def _explain(model: nn.Module, images: torch.Tensor, error: Exception) -> NoReturn:
    """Why the model failed on images [N, C, H, W]: their channels, their size, or itself."""
    stem, channels = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None), images.shape[1]
    if stem is not None and stem.in_channels != channels:
        advice = f"Convert the images, or create the model with in_chans={channels}."
        if images.shape[3] == stem.in_channels:
            advice = "Are they [N, H, W, C]? Then permute(0, 3, 1, 2)."
        raise DataError(
            f"The loader gives images of {channels} channels ({list(images.shape[1:])}) and the model takes "
            f"{stem.in_channels}. {advice}"
        ) from error
    name, size = type(model).__name__, "x".join(map(str, images.shape[1:]))
    if advice := _unpooled(model):
        raise ModelError(f"{name} fails on two images of the loader ({error}). {advice}") from error
    if re.search(r"size|height|width|shape", str(error), re.IGNORECASE):
        words = f"The model cannot take images of {size} as the loader gives them ({error}). Resize them."
        raise DataError(words) from error
    raise ModelError(
        f"{name} fails on two images of {size} of the loader ({type(error).__name__}: {error}). It must take them "
        "by themselves, as model(images)."
    ) from error


def _unpooled(model: nn.Module) -> str:
    """Advice for one of timm's that was made without pooling; else empty."""
    pools = [getattr(m, "global_pool", None) for m in model.modules()]
    if any(getattr(pool, "pool_type", pool) == "" for pool in pools):
        return "It was made with global_pool='', and its classifier gets no pooled features: leave that out."
    return ""
