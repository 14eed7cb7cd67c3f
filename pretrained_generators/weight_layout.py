"""Chunks <-> named tensors: an exact bijection for any module, with a scale for each tensor.

Knows nothing of what the numbers mean: whole weights or a delta, of one model or another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Block:
    """One tensor's place in the vector."""

    name: str
    shape: tuple[int, ...]
    exponent: int = 0  # the tensor is divided by 2 ** exponent: a power of two, so that nothing is rounded

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class WeightLayout:
    """Chunk-wise vectorisation: all blocks one after another, cut into chunks, the last one padded with zeros."""

    blocks: tuple[Block, ...]
    chunk: int  # numbers in a chunk

    @classmethod
    def of(cls, model: nn.Module, chunk: int, exclude: Iterable[str] = ()) -> WeightLayout:
        """The parameters of a module in its own order; tied ones once, buffers never.

        `exclude` holds prefixes of names to leave out, such as the classifier's.
        """
        prefixes = tuple(exclude)
        blocks = (Block(n, tuple(p.shape)) for n, p in model.named_parameters() if not n.startswith(prefixes or "\0"))
        return cls(tuple(blocks), chunk)

    @property
    def size(self) -> int:
        return sum(b.size for b in self.blocks)

    @property
    def num_chunks(self) -> int:
        return -(-self.size // self.chunk)

    def to_chunks(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tensors by name -> float32 [num_chunks, chunk], each divided by its scale.

        Raises:
            KeyError: a block's tensor is missing. ValueError: it has another shape.
        """
        out = torch.zeros(self.num_chunks * self.chunk)
        start = 0
        for block in self.blocks:
            tensor = tensors[block.name]
            if tuple(tensor.shape) != block.shape:
                raise ValueError(f"{block.name} has the shape {tuple(tensor.shape)}, the layout wants {block.shape}.")
            out[start : start + block.size] = tensor.detach().float().reshape(-1) * 2.0**-block.exponent
            start += block.size
        return out.view(self.num_chunks, self.chunk)

    def to_tensors(self, chunks: torch.Tensor) -> dict[str, torch.Tensor]:
        """[num_chunks, chunk] -> tensors by name: the inverse of `to_chunks`."""
        vector = chunks.reshape(-1)
        tensors = {}
        start = 0
        for block in self.blocks:
            part = vector[start : start + block.size]
            tensors[block.name] = (part * 2.0**block.exponent).reshape(block.shape)
            start += block.size
        return tensors

    def scaled_to(self, samples: Iterable[Mapping[str, torch.Tensor]]) -> WeightLayout:
        """The same layout with each block's scale at the nearest power of two to its root mean square in `samples`."""
        squares = dict.fromkeys((b.name for b in self.blocks), 0.0)
        count = 0
        for sample in samples:
            count += 1
            for name in squares:
                squares[name] += sample[name].float().square().mean().item()
        blocks = []
        for b in self.blocks:
            mean_square = squares[b.name] / max(count, 1)
            blocks.append(Block(b.name, b.shape, round(math.log2(mean_square) / 2) if mean_square > 0 else 0))
        return WeightLayout(tuple(blocks), self.chunk)
