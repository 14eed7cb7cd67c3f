"""Ways to write a delta in few numbers: a bundle's VAE, and its rivals, which need no network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pretrained_generators.generator import Generator

Delta = Mapping[str, torch.Tensor]

COMPRESSIONS = (8, 16, 32, 64, 128, 256, 512)  # of the truncated SVD, beside the VAE's own
WHOLE_RANKS = (1, 4, 16, 64)  # numbers a delta in the PCA of whole deltas, as far as there are entries
CHUNK_RANKS = (1, 2, 4, 8, 16, 32)  # numbers a chunk in the PCA of chunks, beside the VAE's own


@dataclass(frozen=True)
class Codec:
    name: str  # "vae", "svd", "pca" or "pca_chunks"
    compression: float  # numbers of a delta over numbers of its code; what all deltas share is not counted
    rebuild: Callable[[Delta], Delta]  # a delta as it comes out again


def codecs(generator: Generator, learnt: Sequence[Delta]) -> Iterator[Codec]:
    """The VAE and its rivals, those that are fitted on the deltas `learnt`, which the VAE was trained on too."""
    layout, latent = generator.config.layout, generator.config.vae.latent
    own = layout.size / (layout.num_chunks * latent)
    flat = torch.stack([torch.cat([delta[b.name].reshape(-1) for b in layout.blocks]) for delta in learnt])
    shapes = {b.name: torch.Size(b.shape) for b in layout.blocks}

    def by_vae(delta: Delta) -> Delta:
        with torch.no_grad():
            return generator.to_delta(
                generator.vae.decode(generator.vae.encode(generator.to_chunks(delta)[None])[0])[0]
            )

    yield Codec("vae", own, by_vae)
    for compression in sorted({*COMPRESSIONS, own}):
        yield Codec("svd", compression, functools.partial(truncated_svd, shapes, int(layout.size / compression)))
    most = len(learnt) - 1
    for rank in sorted({min(rank, most) for rank in WHOLE_RANKS}):
        yield Codec("pca", layout.size / rank, _pca(flat, layout.size, rank, shapes))
    for rank in sorted({min(rank, most) for rank in (*CHUNK_RANKS, latent)}):
        compression = layout.size / (-(-layout.size // layout.chunk) * rank)
        yield Codec("pca_chunks", compression, _pca(flat, layout.chunk, rank, shapes))


def truncated_svd(names: Iterable[str], numbers: int, delta: Delta) -> dict[str, torch.Tensor]:
    """Each layer's matrix [out, rest], of the layers `names`, as the sum of a few rank-one terms, a vector (or a
    single number) whole or not at all.

    Terms of all layers together are taken by their square over the numbers that they cost, `numbers` at most: of a
    rank that is the same for all layers less is left at equal cost.
    """
    delta, factors = {name: delta[name] for name in names}, {}
    for name, tensor in delta.items():
        factors[name] = torch.linalg.svd(torch.atleast_2d(tensor).flatten(1), False)
    costs = {n: t.numel() if t.ndim < 2 else len(t) + t[0].numel() for n, t in delta.items()}
    terms = [(s.item() ** 2 / costs[n], n) for n, (_, values, _) in factors.items() for s in values]
    ranks, used = dict.fromkeys(delta, 0), 0
    for _, name in sorted(terms, reverse=True):
        if used + costs[name] <= numbers:
            ranks[name] += 1
            used += costs[name]
    return {
        name: ((left[:, : ranks[name]] * values[: ranks[name]]) @ right[: ranks[name]]).reshape(delta[name].shape)
        for name, (left, values, right) in factors.items()
    }


def _pca(flat: torch.Tensor, length: int, rank: int, shapes: Mapping[str, torch.Size]) -> Callable[[Delta], Delta]:
    """Principal components of the flat deltas [E, P], of each run of `length` numbers for itself: `rank` of them."""
    mean = flat.mean(0)
    bases = [torch.linalg.svd(part, full_matrices=False)[2][:rank] for part in (flat - mean).split(length, dim=1)]

    def rebuild(delta: Delta) -> Delta:
        centred = torch.cat([delta[name].reshape(-1) for name in shapes]) - mean
        parts = [part @ basis.T @ basis for part, basis in zip(centred.split(length), bases, strict=True)]
        pieces = (torch.cat(parts) + mean).split([shape.numel() for shape in shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    return rebuild
