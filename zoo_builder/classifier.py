"""A model's head: the layer that turns pooled features into logits, wherever the library put it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from zoo_builder.errors import ModelError


@dataclass(frozen=True)
class Classifier:
    """A linear layer on pooled features, or (squeezenet) a 1x1 convolution whose rectified map is pooled.

    The linear head (W, b) is W mean(x) + b. A convolution with ReLU and pooling behind it gives mean(relu(W x + b)),
    which is the same, but for a constant that a softmax does not see, where every W x + b is positive: so a head is
    set there with its biases raised alike, high above the lowest value that it has on the images at hand.
    """

    name: str  # in the model
    layer: nn.Linear | nn.Conv2d

    @property
    def num_classes(self) -> int:
        return self.layer.out_features if isinstance(self.layer, nn.Linear) else self.layer.out_channels

    @property
    def in_features(self) -> int:
        return self.layer.in_features if isinstance(self.layer, nn.Linear) else self.layer.in_channels

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer was given, as one vector an image [N, d]."""
        return inputs.float() if isinstance(self.layer, nn.Linear) else inputs.float().mean((2, 3))

    @torch.no_grad()
    def set(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Copy a head's weight [K, d] and bias [K] into the layer; of a convolution call `raise_bias` then."""
        self.layer.weight.copy_(weight.view_as(self.layer.weight))
        if self.layer.bias is not None:
            self.layer.bias.copy_(bias)

    @torch.no_grad()
    def raise_bias(self, lowest: float, highest: float) -> None:
        """Raise a convolution's biases, given the range of its values: half of the range is left for other images."""
        if isinstance(self.layer, nn.Conv2d) and self.layer.bias is not None:
            self.layer.bias += max(0.0, (highest - lowest) / 2 - lowest)


def find_classifier(model: nn.Module) -> Classifier:
    """What timm's get_classifier() gives, or the last of several layers that a user put there; else the last linear
    layer, or the 1x1 convolution that ends the model; or, where an nn.Identity comes last, the only child that is a
    linear layer and nothing else with parameters.

    Raises:
        ModelError: the model has none (a detector, a headless body), or one that no solution fits.
    """
    get_classifier = getattr(model, "get_classifier", None)
    try:
        layer = get_classifier() if get_classifier is not None else _last_layer(model) or _only_head(model)
    except AttributeError:  # some of timm's, without their heads
        layer = None
    # Other modules of timm's, and lists, may hold several heads.
    users_own = isinstance(layer, nn.Sequential) or not type(layer).__module__.startswith(("timm.", "torch."))
    if isinstance(layer, nn.Module) and users_own and not isinstance(layer, nn.Linear | nn.Conv2d):
        layer = _last_layer(layer)
    names = {module: name for name, module in model.named_modules()}
    if not isinstance(layer, nn.Linear | nn.Conv2d) or layer not in names:
        found = "none" if layer is None else type(layer).__name__
        if layer is None and any(isinstance(m, nn.Linear) for m in names):
            found = "none that is the last; behind an nn.Identity, where a head was left out, assign the head last"
        raise ModelError(
            f"{type(model).__name__} has no linear classifier to solve for (found {found}). Expected an image "
            "classifier of timm or torchvision that ends in nn.Linear or a 1x1 convolution, created with num_classes "
            ">= 2."
        )
    if layer.bias is None:
        raise ModelError(
            f"The classifier of {type(model).__name__}, {names[layer]}, has no bias, and solved heads have one. "
            "Make it with bias=True."
        )
    own = {name for name, _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))}
    if not {"weight", "bias"} <= own:
        raise ModelError(
            f"The classifier of {type(model).__name__}, {names[layer]}, is parametrized: its weights are computed and "
            "cannot be set. Initialise the model before parametrizations, weight_norm or pruning are used on it."
        )
    return Classifier(names[layer], layer)


def _last_layer(model: nn.Module) -> nn.Module | None:
    layer: nn.Module | None = None
    before: nn.Module | None = None
    for module in model.modules():
        if isinstance(module, nn.Linear):
            layer = module
        elif isinstance(module, nn.Identity):
            # A head was here and is left out; what came before it is the body's. Right behind a linear layer it does
            # nothing to that one.
            layer = layer if before is layer and isinstance(layer, nn.Linear) else None
            continue
        elif isinstance(layer, nn.Conv2d | None) and next(module.parameters(recurse=False), None) is not None:
            is_head = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.bias is not None
            layer = module if is_head else None
        before = module
    return layer


def _only_head(model: nn.Module) -> nn.Module | None:
    """Of a model whose layers are not in the order in which they run, or of what is wrapped in it."""
    children = [c for c in model.children() if next(c.parameters(), None) is not None]
    if len(children) == 1 and not hasattr(children[0], "get_classifier"):  # timm's are known to have none
        return _only_head(children[0])
    heads = [head for child in children if (head := _last_layer(child)) is not None and _is_all(head, child)]
    return heads[0] if len(heads) == 1 else None


def _is_all(layer: nn.Module, module: nn.Module) -> bool:
    """Whether it has all of the module's parameters, and is linear: convolutions are layers of bodies, too."""
    return isinstance(layer, nn.Linear) and len(list(module.parameters())) == len(list(layer.parameters()))
