"""Whether a body was ever trained."""

from __future__ import annotations

from torch import nn

from pretrained_generators.weight_layout import is_norm, parameters_in_scope

NEARLY = 1e-4  # in which vectors that begin as noise about zero (torchvision's transformers have some) are constant too


def is_untrained(model: nn.Module) -> bool:
    """Whether all weights, biases and statistics of the norms are constant, or, where a model has no norms, its biases:
    so libraries begin them, and no training leaves them. A model whose biases begin at random counts as trained."""
    norms = [m for m in model.modules() if is_norm(m)]
    vectors = [t for m in norms for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    if not norms:
        names = parameters_in_scope(model, "body")
        vectors = [p for name, p in model.named_parameters() if name in names and p.ndim == 1]
    return bool(vectors) and all(bool(v.max() - v.min() <= NEARLY) for v in vectors)
