"""Is one method better than another on a dataset, and by how much: paired, over test images and seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
LEVEL = 0.05  # one-sided, over the datasets of a comparison together


@dataclass(frozen=True)
class Difference:
    """Of one dataset, in points of accuracy, first minus second."""

    mean: float
    low: float  # bounds of one-sided intervals of 95 %, each by itself
    high: float
    p_win: float  # that the first is no better
    p_loss: float  # that it is no worse
    verdict: str = "tie"  # "win" or "loss" where that holds after Holm's correction over the datasets


def paired_bootstrap(first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0) -> Difference:
    """Of correctness bool [S][n], of the same S seeds and test images: both are drawn anew, independently of one
    another, so that the interval holds for other images and other seeds (Efron and Tibshirani 1993); of one seed none
    is drawn, and it holds for other images alone. Seeds of as many images have the same ones."""
    shapes = [[part.shape for part in parts] for parts in (first, second)]
    if shapes[0] != shapes[1] or any(len(shape) != 1 for shape in shapes[0]):
        raise ValueError(f"expected arrays [images] of the same seeds, got those of {shapes[0]} and {shapes[1]}")
    differences = [a.astype(np.float32) - b.astype(np.float32) for a, b in zip(first, second, strict=True)]
    # Seeds count alike. All sums are of whole numbers, and exact: a draw in which both are as good is a tie.
    images = math.lcm(*(len(d) for d in differences))
    by_seed = [
        (_draws(len(d), seed).astype(np.float32) @ d).astype(np.float64) * (images // len(d)) for d in differences
    ]
    sums = (np.stack(by_seed, axis=1) * _draws(len(differences), seed)).sum(1)
    means = 100 * sums / (images * len(differences))
    return Difference(
        mean=100 * float(np.mean([d.mean() for d in differences])),
        low=float(np.quantile(means, LEVEL)),
        high=float(np.quantile(means, 1 - LEVEL)),
        p_win=float((1 + (sums <= 0).sum()) / (1 + RESAMPLES)),
        p_loss=float((1 + (sums >= 0).sum()) / (1 + RESAMPLES)),
    )


@functools.lru_cache(maxsize=32)
def _draws(count: int, seed: int) -> np.ndarray:
    """uint8 [RESAMPLES, count]: how often each of `count` is in a draw of as many with replacement; as many are kept as
    there may be datasets, and as float32 they would take a GiB."""
    rng = np.random.default_rng((count, seed))
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.uint8)


def with_verdicts(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same by dataset, each called a win or a loss where it is one at LEVEL after Holm's correction (1979)."""
    names = list(differences)
    wins = holm([differences[n].p_win for n in names])
    losses = holm([differences[n].p_loss for n in names])
    verdicts = ["win" if w else "loss" if x else "tie" for w, x in zip(wins, losses, strict=True)]
    return {
        n: Difference(d.mean, d.low, d.high, d.p_win, d.p_loss, v)
        for (n, d), v in zip(differences.items(), verdicts, strict=True)
    }


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which hypotheses are rejected, the chance of any false rejection being at most `level`."""
    rejected = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def steps_to_target(curve: Sequence[tuple[int, float, float]], target: float) -> int | None:
    """The first step of a curve of (step, seconds, accuracy) at which the accuracy is at least `target`."""
    return next((step for step, _, accuracy in curve if accuracy >= target), None)
