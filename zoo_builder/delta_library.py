"""What a zoo can give without a generator: combinations of its entries' deltas, chosen by a dataset's embedding.

Each is a weight for every entry, so that all of them are compared and fitted in the Gram matrix of the deltas.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from zoo_builder.errors import ZooError
from zoo_builder.files import temporary_name
from zoo_builder.store import Zoo

TEMPERATURES = tuple(10.0**e for e in (-2.0, -1.5, -1.0, -0.5, 0.0))  # of cosines
RIDGES = tuple(10.0**e for e in (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5))  # in units of the mean of diag(Z Z')

WeighEntries = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # embeddings [E, k], query [k] -> weights [E]


@dataclass(frozen=True)
class DeltaLibrary:
    """Deltas, each at the strength that served its own dataset best, with the embeddings of their datasets."""

    ids: tuple[str, ...]
    datasets: tuple[str, ...]  # of each entry its own one; entries over several are not here
    shapes: dict[str, torch.Size]  # of the body's parameters
    stacked: torch.Tensor  # float16 [E, P], mapped from a file
    strengths: torch.Tensor  # float32 [E]
    embeddings: torch.Tensor  # float32 [E, k]

    @classmethod
    def of(cls, zoo: Zoo, plans: Sequence[str], file: Path) -> DeltaLibrary:
        """Entries of `plans` over one dataset. Their deltas are kept in `file`, or found there by those who come later;
        it must not be that of another zoo.

        Raises:
            ZooError: fewer than two.
        """
        entries = [e for e in zoo.entries(plans) if len(e.task.datasets) == 1]
        if len(entries) < 2:
            raise ZooError(f"{zoo.path} holds {len(entries)} entries of {list(plans)} over one dataset; 2 are needed.")
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            begun = temporary_name(file)
            zoo.stack(entries, begun)
            os.replace(begun, file)
        stacked = torch.from_file(str(file), shared=False, size=file.stat().st_size // 2, dtype=torch.half)
        return cls(
            ids=tuple(e.id for e in entries),
            datasets=tuple(e.task.datasets[0] for e in entries),
            shapes=zoo.shapes,
            stacked=stacked.view(len(entries), -1),
            strengths=torch.tensor([e.metrics["best_strength"] for e in entries]),
            embeddings=torch.stack([e.embedding() for e in entries]),
        )

    def combine(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sum of the deltas by `weights` [E], by parameter name."""
        flat = torch.zeros(self.stacked.shape[1])
        for row, weight in zip(self.stacked, (weights * self.strengths).tolist(), strict=True):
            if weight:
                flat.add_(row.float(), alpha=weight)
        sizes = [shape.numel() for shape in self.shapes.values()]
        return {n: part.view(s) for (n, s), part in zip(self.shapes.items(), flat.split(sizes), strict=True)}

    @functools.cached_property
    def gram(self) -> torch.Tensor:
        """Inner products of the deltas, float64 [E, E]."""
        gram = torch.zeros(len(self.ids), len(self.ids), dtype=torch.double)
        for part in self.stacked.split(1 << 16, dim=1):
            rows = part.float() * self.strengths[:, None]
            gram += (rows @ rows.T).double()
        return gram

    def nearest(self, query: torch.Tensor) -> torch.Tensor:
        """All on the entry whose embedding is nearest to `query` [k] by cosine, about the mean of the library."""
        return F.one_hot(cosines(self.embeddings, query).argmax(), len(self.ids)).float()

    def mean(self) -> torch.Tensor:
        return torch.full((len(self.ids),), 1 / len(self.ids))

    def by_similarity(self, query: torch.Tensor) -> torch.Tensor:
        """Softmax of the cosines, at the temperature that is best for datasets left out."""
        return similarity_weights(self.embeddings, query, self._temperature)

    def least_squares(self, query: torch.Tensor) -> torch.Tensor:
        """Ridge regression from embeddings to deltas, at the ridge that is best for datasets left out."""
        return ridge_weights(self.embeddings, query, self._ridge)

    @functools.cached_property
    def _temperature(self) -> float:
        return min(TEMPERATURES, key=lambda t: self._left_out_error(lambda z, q: similarity_weights(z, q, t)))

    @functools.cached_property
    def _ridge(self) -> float:
        return min(RIDGES, key=lambda r: self._left_out_error(lambda z, q: ridge_weights(z, q, r)))

    def _left_out_error(self, weigh: WeighEntries) -> float:
        """Mean square distance, over entries, of what is made of the other datasets' entries to the entry itself."""
        names = np.array(self.datasets)
        total = 0.0
        for name in dict.fromkeys(self.datasets):
            own, others = (torch.from_numpy(np.flatnonzero(mask)) for mask in (names == name, names != name))
            if not len(others):
                return 0.0
            for i in own:
                w = weigh(self.embeddings[others], self.embeddings[i]).double()
                cross = self.gram[i, others] @ w
                total += float(w @ self.gram[others][:, others] @ w - 2 * cross + self.gram[i, i])
        return total / len(names)


def cosines(embeddings: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """[E] of embeddings [E, k] with a query [k], about the embeddings' mean: what all datasets share says nothing."""
    mean = embeddings.mean(0)
    return F.normalize(embeddings - mean, dim=1) @ F.normalize(query - mean, dim=0)


def similarity_weights(embeddings: torch.Tensor, query: torch.Tensor, temperature: float) -> torch.Tensor:
    return (cosines(embeddings, query) / temperature).softmax(0)


def ridge_weights(embeddings: torch.Tensor, query: torch.Tensor, ridge: float) -> torch.Tensor:
    """[E]: the prediction for `query` of a ridge regression with intercept from `embeddings` to any targets [E, P] is
    these weights times the targets. `ridge` is in units of the mean square norm of a centred embedding."""
    z = embeddings.double()
    mean = z.mean(0)
    z, q = z - mean, query.double() - mean
    kernel = z @ z.T
    penalty = (ridge * kernel.diagonal().mean()).clamp_min(1e-12)  # equal embeddings say nothing: the mean
    regularised = kernel + penalty * torch.eye(len(z), dtype=torch.double)
    alpha = torch.linalg.solve(regularised, z @ q)
    return (alpha - alpha.mean() + 1 / len(z)).float()
