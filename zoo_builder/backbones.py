"""Models by name, their classifier, and the features that go into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from zoo_builder.checkpoint import read_tensors
from zoo_builder.errors import ModelError, nearest_names


def create_backbone(name: str, checkpoint: str | Path | None = None, num_classes: int = 0) -> nn.Module:
    """A timm model by name; with `num_classes=0` its output is the pooled feature vector [N, d].

    `checkpoint` is a safetensors file of the body (keys without the classifier).

    Raises:
        ModelError: unknown name, or a checkpoint of another architecture.
    """
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}; {nearest_names(name, timm.list_models())}")
    model = timm.create_model(name, pretrained=False, num_classes=num_classes)
    if checkpoint is not None:
        load_body(model, read_tensors(Path(checkpoint))[0], str(checkpoint))
    return model


def load_body(model: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Fill all of `model` but its classifier from `tensors`, which must fit exactly.

    Raises:
        ModelError: names or shapes differ; the first difference is named.
    """
    expected = body_state(model)
    for key in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[key].shape) if key in expected else None
        have = tuple(tensors[key].shape) if key in tensors else None
        if want != have:
            raise ModelError(f"{source} does not fit this model: {key} is {have} in the file and {want} in the model.")
    model.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()}, strict=False)


def find_classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """The name and module of the last linear layer: what timm's get_classifier() gives, else the last nn.Linear.

    Raises:
        ModelError: the model has none (a detector, a headless body, a convolutional classifier).
    """
    linears = {m: n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    get_classifier = getattr(model, "get_classifier", None)
    head = get_classifier() if get_classifier is not None else next(reversed(linears), None)
    if not isinstance(head, nn.Linear) or head not in linears:
        raise ModelError(
            f"{type(model).__name__} has no linear classifier to solve for (found {type(head).__name__}). Expected an "
            "image classifier of timm or torchvision that ends in nn.Linear, created with num_classes >= 2."
        )
    return linears[head], head


def body_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without the classifier's tensors (all of it where there is no classifier)."""
    try:
        prefix = find_classifier(model)[0] + "."
    except ModelError:
        return dict(model.state_dict())
    return {k: v for k, v in model.state_dict().items() if not k.startswith(prefix)}


def image_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels by channel, of images in [0, 1], that timm configures a model for."""
    config = cast(dict[str, Any], model.pretrained_cfg)
    return config["mean"], config["std"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients inside; every module's own mode is put back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def extract_features(model: nn.Module, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """What goes into the classifier, [N, d] float32, in evaluation mode, of images [N, C, H, W]."""
    _, head = find_classifier(model)
    caught: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: caught.append(args[0].float()))
    try:
        with evaluating(model):
            for batch in images.split(batch_size):
                model(batch)
    finally:
        hook.remove()
    features = torch.cat(caught)
    if features.shape != (len(images), head.in_features):
        raise ModelError(
            f"The classifier of {type(model).__name__} must see one vector an image, [{len(images)}, "
            f"{head.in_features}]; it sees {list(features.shape)}. Such a model is not supported."
        )
    return features.clone()


def predict(model: nn.Module, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Logits [N, K] float32 in evaluation mode."""
    with evaluating(model):
        return torch.cat([model(batch).float() for batch in images.split(batch_size)]).clone()
