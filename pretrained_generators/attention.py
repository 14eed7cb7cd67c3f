"""The one transformer block of this package: attention and an MLP, pre-norm, optionally conditioned by adaLN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class AttentionBlock(nn.Module):
    """x attends to `context`, or to itself; with a condition as in DiT's adaLN-Zero (Peebles & Xie, 2023)."""

    def __init__(self, width: int, heads: int, condition: int = 0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"A width of {width} cannot be split into {heads} heads.")
        self.heads = heads
        self.norm_x = nn.LayerNorm(width, elementwise_affine=not condition)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=not condition)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(condition, 6 * width) if condition else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [B, N, width]; context [B, M, width]; mask [B, M], True where attended; condition [B, c]."""
        if self.modulation is None or condition is None:
            x = x + self.attend(self.norm_x(x), self.norm_x(context) if context is not None else None, mask)
            return x + self.mlp(self.norm_mlp(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attend(self.norm_x(x) * (1 + scale1) + shift1, None, mask)
        return x + gate2 * self.mlp(self.norm_mlp(x) * (1 + scale2) + shift2)

    def attend(self, x: torch.Tensor, context: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        q = self.query(x)
        k, v = self.key_value(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        bias = mask[:, None, None, :] if mask is not None else None
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
