"""Whether a body was ever trained."""

from __future__ import annotations

from torch import nn

from pretrained_generators.weight_layout import is_norm, parameters_in_scope
from zoo_builder.batchnorm import batchnorm_layers

NEARLY = 1e-4  # in which vectors that begin as noise about zero (torchvision's transformers have some) are constant too


def is_untrained(model: nn.Module) -> bool:
    """Whether BatchNorm's statistics are all constant, or, where a model has none, the weights and biases of its norms,
    or, where it has no norms, its biases: so libraries begin them, and no training leaves them. Weights of BatchNorm
    say nothing: timm draws RepVGG's. A model without norms whose biases begin at random counts as trained."""
    norms = [m for m in model.modules() if is_norm(m)]
    vectors = [b for m in batchnorm_layers(model) for b in m.buffers() if b.is_floating_point()]
    vectors = vectors or [t for m in norms for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    if not norms:
        names = parameters_in_scope(model, "body")
        vectors = [p for name, p in model.named_parameters() if name in names and p.ndim == 1]
    return bool(vectors) and all(bool(v.max() - v.min() <= NEARLY) for v in vectors if v.numel())
