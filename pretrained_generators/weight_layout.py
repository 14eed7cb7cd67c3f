"""Chunks <-> named tensors: an exact bijection for any module, with a scale for each tensor.

Knows nothing of what the numbers mean: whole weights or a delta, of one model or another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import nn

from zoo_builder.backbones import body_state, is_norm
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError, RecipeError, nearest_names

Vectorisation = Literal["model", "layer", "chunk", "layer-chunk"]
SCOPES = ("all", "body", "head", "norm", "head+norm")


@dataclass(frozen=True)
class Block:
    """One tensor's place in the vector."""

    name: str
    shape: tuple[int, ...]
    exponent: int = 0  # the tensor is divided by 2 ** exponent: a power of two, so that nothing is rounded
    rank: int | None = None  # of the subspaces that it is reduced to, see low_rank.py; None keeps it whole

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """Its shape as outputs by all else."""
        return math.prod(self.shape[:1]), math.prod(self.shape[1:])

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of what is in the vector."""
        return self.shape if self.rank is None else tuple(min(self.rank, n) for n in self.matrix)

    @property
    def layer(self) -> str:
        """The module that holds it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class WeightLayout:
    """Blocks one after another, cut into chunks; what a chunk has left over is zero.

    With `by_layer` a layer (a module with its own parameters) begins a new chunk, so that no chunk holds two of them.
    """

    blocks: tuple[Block, ...]
    chunk: int  # numbers in a chunk
    by_layer: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        chunk: int = 1024,
        vectorisation: Vectorisation = "chunk",
        scope: str | Sequence[str] = "all",
        rank: int = 0,
    ) -> WeightLayout:
        """Parameters of a module in its own order; tied ones once, buffers never.

        Args:
            chunk: numbers in a chunk, for the vectorisations "chunk" and "layer-chunk"; at most what there is to cut.
            vectorisation: the paper's model-wise (one chunk holds all), layer-wise (a chunk a layer, as long as the
                longest) and chunk-wise; "layer-chunk" cuts each layer for itself.
            scope: "all"; "body", all but the classifier, if there is one; "head", the classifier; "norm", the
                normalisation layers; "head+norm"; or names of modules, with all inside them.
            rank: matrices that get smaller by it are held reduced to subspaces of this rank; 0 keeps all whole.

        Raises:
            RecipeError: an unknown vectorisation or scope, chunks of less than one number, or a negative rank.
            ModelError: a module that is not there, or no parameters in the scope.
        """
        chosen = parameters_in_scope(model, scope)
        blocks = tuple(Block(n, tuple(p.shape)) for n, p in model.named_parameters() if n in chosen)
        if vectorisation not in get_args(Vectorisation):
            raise RecipeError(
                f"unknown vectorisation {vectorisation!r}; {nearest_names(vectorisation, get_args(Vectorisation))}"
            )
        if rank < 0:
            raise RecipeError(f"a rank must be 1 or more, or 0 to keep all whole; got {rank}.")
        if rank:
            blocks = tuple(_reduced(block, rank) for block in blocks)
        layout = cls(blocks, 1, by_layer=vectorisation.startswith("layer"))
        longest = (max if layout.by_layer else sum)(layout.layer_sizes.values())
        chunk = min(chunk, longest) if vectorisation.endswith("chunk") else longest
        if chunk < 1:
            raise RecipeError(f"a chunk must hold 1 number or more, got {chunk}.")
        return replace(layout, chunk=chunk)

    @property
    def size(self) -> int:
        """Parameters that it covers."""
        return sum(b.size for b in self.blocks)

    @property
    def layer_sizes(self) -> dict[str, int]:
        """Layer -> its numbers in the vector, in the order of the blocks."""
        sizes: dict[str, int] = {}
        for block in self.blocks:
            sizes[block.layer] = sizes.get(block.layer, 0) + math.prod(block.stored)
        return sizes

    @property
    def num_chunks(self) -> int:
        sizes = list(self.layer_sizes.values())
        if not self.by_layer:
            sizes = [sum(sizes)]
        return sum(-(-size // self.chunk) for size in sizes)

    @functools.cached_property
    def _places(self) -> torch.Tensor:
        """int64, where each number of the vector stands among those of the chunks."""
        if not self.by_layer:
            return torch.arange(sum(self.layer_sizes.values()))
        places, start = [torch.empty(0, dtype=torch.long)], 0
        for size in self.layer_sizes.values():
            places.append(torch.arange(start, start + size))
            start += -(-size // self.chunk) * self.chunk
        return torch.cat(places)

    def to_chunks(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tensors by name -> float32 [num_chunks, chunk], each divided by its scale.

        Raises:
            KeyError: a block's tensor is missing. ValueError: it has another shape.
        """
        parts = [torch.empty(0)]
        for block in self.blocks:
            tensor = tensors[block.name]
            if tuple(tensor.shape) != block.stored:
                raise ValueError(f"{block.name} has the shape {tuple(tensor.shape)}, the layout wants {block.stored}.")
            parts.append(tensor.detach().float().reshape(-1) * 2.0**-block.exponent)
        out = torch.zeros(self.num_chunks * self.chunk)
        out[self._places] = torch.cat(parts)
        return out.view(self.num_chunks, self.chunk)

    def to_tensors(self, chunks: torch.Tensor) -> dict[str, torch.Tensor]:
        """[num_chunks, chunk] -> tensors by name: the inverse of `to_chunks`; differentiable."""
        vector = chunks.reshape(-1)[self._places.to(chunks.device)]
        parts = vector.split([math.prod(b.stored) for b in self.blocks])
        return {b.name: (p * 2.0**b.exponent).reshape(b.stored) for b, p in zip(self.blocks, parts, strict=True)}

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
            blocks.append(replace(b, exponent=round(math.log2(mean_square) / 2) if mean_square > 0 else 0))
        return replace(self, blocks=tuple(blocks))


def _reduced(block: Block, rank: int) -> Block:
    """The block with a rank, where it has two dimensions or more and gets smaller by it."""
    reduced = replace(block, rank=rank)
    return reduced if len(block.shape) > 1 and math.prod(reduced.stored) < block.size else block


def parameters_in_scope(model: nn.Module, scope: str | Sequence[str]) -> set[str]:
    """Names of the parameters that a scope of `WeightLayout.of` holds."""
    kept = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: kept[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}  # a tied one's first name
    if scope == "all":
        chosen = set(names)
    elif scope == "body":
        chosen = names.keys() & body_state(model).keys()
    elif isinstance(scope, str) and scope in SCOPES:
        modules = [find_classifier(model).name] if "head" in scope else []
        if "norm" in scope:
            modules += [name for name, module in model.named_modules() if is_norm(module)]
        chosen = _inside(names, modules)
    elif isinstance(scope, str):
        raise RecipeError(f"unknown scope {scope!r}; {nearest_names(scope, SCOPES)} Or give a list of modules.")
    elif not isinstance(scope, Collection) or not all(isinstance(name, str) for name in scope):
        raise RecipeError(f"expected a scope ({', '.join(SCOPES)}) or a list of modules' names, got {scope!r:.80}.")
    else:
        there = [name for name, _ in model.named_modules()]
        for name in scope:
            if name not in there:
                raise ModelError(f"{type(model).__name__} has no module {name!r}; {nearest_names(name, there)}")
        chosen = _inside(names, scope)
    if not chosen:
        raise ModelError(f"{type(model).__name__} has no parameters in the scope {scope!r}.")
    return {names[name] for name in chosen}


def _inside(names: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Names of parameters in any of the modules, at any depth."""
    prefixes = tuple(f"{module}." for module in modules)
    return {name for name in names if name.startswith(prefixes)}
