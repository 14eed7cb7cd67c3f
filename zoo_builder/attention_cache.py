"""Attention biases that some models of timm (LeViT, EfficientViT, TinyViT, EfficientFormer) keep in evaluation mode.

Until the next call of `train()` or `eval()` they outlive the weights that they were looked up in: what is set,
substituted or trained would have no effect.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def biased_attention(model: nn.Module) -> list[Any]:
    """Modules that keep such biases, unless they are in training mode."""
    return [m for m in model.modules() if isinstance(getattr(m, "attention_bias_cache", None), dict)]


def forget_biases(model: nn.Module) -> None:
    """Those kept so far: the weights may be others now."""
    for module in biased_attention(model):
        module.attention_bias_cache.clear()
