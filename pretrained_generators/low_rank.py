"""Deltas <-> what lies of them in a few dimensions: for each layer's matrix one subspace of its outputs and one of its
inputs, which all deltas share.

They are the leading eigenvectors over a zoo, as in the higher-order SVD (De Lathauwer et al., 2000), so that a delta
U C V' has a core C of its own, and U and V are kept once. Factors of each delta for itself would do with a lower rank,
but they are not linear in it, and unique only up to a change of basis: nothing could be mixed, or learnt, in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from pretrained_generators.weight_layout import WeightLayout


class SharedSubspaces(nn.Module):
    """Of the blocks of a layout that have a rank; others pass as they are. Linear, and the identity on whatever lies in
    the subspaces."""

    def __init__(self, layout: WeightLayout) -> None:
        super().__init__()
        self.blocks = {i: b for i, b in enumerate(layout.blocks) if b.rank is not None}
        for i, block in self.blocks.items():
            for side, size, kept in zip(("left", "right"), block.matrix, block.stored, strict=True):
                self.register_buffer(f"{side}_{i}", torch.zeros(size, kept))

    def _bases(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return getattr(self, f"left_{i}"), getattr(self, f"right_{i}")

    @torch.no_grad()
    def fit(self, deltas: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Set the subspaces to those that hold most of `deltas`, which are gone through once."""
        grams = {i: [torch.zeros(n, n, dtype=torch.double) for n in b.matrix] for i, b in self.blocks.items()}
        for delta in deltas:
            for i, block in self.blocks.items():
                matrix = delta[block.name].double().reshape(block.matrix)
                grams[i][0] += matrix @ matrix.T
                grams[i][1] += matrix.T @ matrix
        for i in self.blocks:
            for basis, gram in zip(self._bases(i), grams[i], strict=True):
                basis.copy_(torch.linalg.eigh(gram).eigenvectors.flip(1)[:, : basis.shape[1]])

    def reduce(self, delta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors by name -> the same with cores [r, s] in place of those that have a rank."""
        reduced = dict(delta)
        for i, block in self.blocks.items():
            left, right = self._bases(i)
            reduced[block.name] = left.T @ delta[block.name].float().reshape(block.matrix) @ right
        return reduced

    def expand(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inverse of `reduce` on the subspaces; differentiable."""
        expanded = dict(tensors)
        for i, block in self.blocks.items():
            left, right = self._bases(i)
            expanded[block.name] = (left @ tensors[block.name] @ right.T).reshape(block.shape)
        return expanded
