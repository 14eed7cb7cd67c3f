"""Copying or generalising? What Zeng et al. ("Generative Modeling of Weights: Generalization or Memorization?", 2025)
ask of a weight generator: how near to its training models are generated ones, in weights and in behaviour, and does
anything simpler do as well.

Knows nothing of a zoo: it is given flat deltas and predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

SCHEMA = 3  # of audit.json; earlier ones are of a test that a copy of another length passes
LEVEL = 0.005  # one-sided: of models no nearer than others one audit in two hundred says that they are copies
FOUND = {
    True: "Copying or interpolating: generated models lie nearer",
    False: "No copying found: generated models lie no nearer",
    None: "Too few tasks were held back to tell whether it copies: of so few, even copies could by chance lie nearer",
}
GENERATED = ("generated", "generated_shuffled", "generated_null")  # for a task, for another one's images, for none
TRAINED = ("held_out", "training")  # what the others are seen beside: models of the zoo, kept back or learnt from


@dataclass(frozen=True)
class Sighting:
    """One model under audit, for one task."""

    task: str  # id of the zoo's entry of it
    dataset: str
    method: str
    distance: float  # as `nearest_distance`
    overlap: float  # largest IoU of its wrong answers with those of a training model
    accuracy: float  # in percent, on images that its head was not solved on


@dataclass(frozen=True)
class Verdict:
    distance_z: float  # Mann-Whitney: generated against held-out models, mean distances of each task
    distance_p: float  # that generated models are no nearer, one-sided
    condition_drop: float | None  # points that another dataset's condition costs; None where there is no other
    null_drop: float  # points that it costs to have none
    beaten_by: tuple[str, ...]  # simpler methods that are as accurate in the mean
    copies: bool | None  # None: too few tasks to tell, however near they lie

    def __str__(self) -> str:
        drop = self.condition_drop
        other = "" if drop is None else f"another dataset's condition costs {drop:.1f} points, "
        simpler = ", ".join(self.beaten_by) or "nothing"
        return (
            f"{FOUND[self.copies]} to training models than models of unseen tasks do (z = {self.distance_z:.1f}, p = "
            f"{self.distance_p:.2g}); {other}none at all {self.null_drop:.1f}; as accurate and simpler: {simpler}."
        )


def distances(delta: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Of a flat delta [P] to each of `known` [E, P] at its best length, over the delta's own norm: 0 for a copy,
    however stretched, and 1 for what has nothing of it."""
    length = (known @ delta / known.square().sum(1).clamp_min(1e-12)).clamp_min(0)
    return (length[:, None] * known - delta).norm(dim=1) / delta.norm().clamp_min(1e-12)


def nearest_distance(delta: torch.Tensor, known: torch.Tensor) -> float:
    return distances(delta, known).min().item()


def largest_overlap(wrong: torch.Tensor, known: torch.Tensor) -> float:
    """The largest IoU of wrong answers [N] (bool) with those of `known` [E, N]; 0 where nothing is wrong."""
    both, either = (known & wrong).sum(1), (known | wrong).sum(1)
    return (both / either.clamp_min(1)).max().item()


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """How many standard deviations the rank sum of `first` is above what chance gives, and the chance of one as low,
    exact where there are few and no ties; 0 and 1 where one is empty."""
    from scipy.stats import mannwhitneyu

    n, m = len(first), len(second)
    if not n or not m:
        return 0.0, 1.0
    found = mannwhitneyu(first, second, alternative="less")
    return float((found.statistic - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)), float(found.pvalue)


def judge(sightings: Sequence[Sighting]) -> Verdict:
    """Of sightings of all GENERATED, the shuffled one if there is another dataset, of "held_out" and of any simpler
    methods."""
    by_method: dict[str, list[Sighting]] = {}
    for s in sightings:
        by_method.setdefault(s.method, []).append(s)
    accuracy = {m: sum(s.accuracy for s in found) / len(found) for m, found in by_method.items()}
    made, held_out = (_distances(by_method[m]) for m in ("generated", "held_out"))
    z, p = mann_whitney(made, held_out)
    enough = 1 / math.comb(len(made) + len(held_out), len(made)) <= LEVEL  # if all were nearer than any other
    shuffled = accuracy.get("generated_shuffled")
    simpler = [m for m in accuracy if m not in (*GENERATED, *TRAINED)]
    return Verdict(
        distance_z=z,
        distance_p=p,
        condition_drop=None if shuffled is None else accuracy["generated"] - shuffled,
        null_drop=accuracy["generated"] - accuracy["generated_null"],
        beaten_by=tuple(m for m in simpler if accuracy[m] >= accuracy["generated"]),
        copies=p <= LEVEL if enough else None,
    )


def _distances(sightings: Sequence[Sighting]) -> list[float]:
    """The mean of each task: its samples are alike, and to a rank test they would be as many tasks."""
    by_task: dict[str, list[float]] = {}
    for s in sightings:
        by_task.setdefault(s.task, []).append(s.distance)
    return [sum(found) / len(found) for found in by_task.values()]


def gaussian(known: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A draw [P] from a Gaussian fitted to each parameter of `known` [E, P]."""
    std, mean = torch.std_mean(known, dim=0)
    return mean + std * torch.randn(mean.shape, generator=generator)


def noisy(delta: torch.Tensor, sizes: Mapping[str, int], sigma: float, generator: torch.Generator) -> torch.Tensor:
    """A flat delta [P] with noise of `sigma` times each tensor's root mean square; `sizes` are the tensors' numbers."""
    parts = delta.split(list(sizes.values()))
    return torch.cat([p + sigma * p.square().mean().sqrt() * torch.randn(p.shape, generator=generator) for p in parts])
