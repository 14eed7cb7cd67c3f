"""What a task's body became, scored: an entry of a zoo before it is written."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from zoo_builder.objectives import Fits, Sources
from zoo_builder.scoring import Delta, Head, Probe, Score, Trial, best_strength, mean_accuracy, score
from zoo_builder.tasks import FineTuneTask

HALF_LOSES = 0.1  # points of accuracy that half precision may cost an entry; else it is kept in single precision


@dataclass(frozen=True)
class Start:
    """What a task goes on from: another entry, at the strength that served its datasets best."""

    delta: Mapping[str, torch.Tensor]
    learning_rate: float  # that it was kept at


@dataclass(frozen=True)
class FineTuneResult:
    delta: dict[str, torch.Tensor]  # the body's trained parameters minus the base's, float16 or float32
    heads: dict[str, torch.Tensor]  # DATASET/weight [K, d] and DATASET/bias [K] of trained heads; empty for episodic
    support: torch.Tensor  # uint8 [n, 3, S, S], a sample of the first dataset's train images
    support_labels: torch.Tensor  # int64 [n]
    embedding: torch.Tensor  # [2 d] float32, of the support
    metrics: dict[str, float]  # accuracies in percent, the best strength, the learning rate, seconds
    curve: list[tuple[int, float]]  # (step, mean loss since the point before)


@dataclass(frozen=True)
class PreparedTask:
    """A task with all that is measured before its training."""

    task: FineTuneTask
    start: Start | None
    sources: Sources
    fits: Fits
    probes: list[Probe]
    embedding: torch.Tensor


@dataclass(frozen=True)
class Member:
    """One model that is trained: a task at one learning rate."""

    prepared: PreparedTask
    rate: float
    floor: float  # accuracy of the base
    heads: list[Head]  # to start from, one a dataset; of no use to an episodic task

    @property
    def task(self) -> FineTuneTask:
        return self.prepared.task


@dataclass(frozen=True)
class TrainedMember:
    """What a member became."""

    delta: dict[str, torch.Tensor]  # float32
    heads: list[Head]
    curve: list[tuple[int, float]]


def score_members(tried: Sequence[tuple[Member, TrainedMember]], base: nn.Module, at_once: int) -> list[FineTuneResult]:
    """Score what members became, in half precision where that loses little."""
    whole = score_probes([(m.prepared, t.delta, 1.0, t.heads) for m, t in tried], base, at_once)
    halves = [{k: v.half() for k, v in t.delta.items()} for _, t in tried]
    overflows = [not all(torch.isfinite(v).all() for v in half.values()) for half in halves]
    kept = [t.delta if over else half for (_, t), half, over in zip(tried, halves, overflows, strict=True)]
    accuracies = _strengths([(m, delta) for (m, _), delta in zip(tried, kept, strict=True)], base, at_once)
    loses = [
        mean_accuracy(w) - (0.0 if over else a[1.0]) for w, a, over in zip(whole, accuracies, overflows, strict=True)
    ]
    lossy = [i for i, points in enumerate(loses) if points >= HALF_LOSES and not overflows[i]]
    again = _strengths([(tried[i][0], tried[i][1].delta) for i in lossy], base, at_once)
    for i, found in zip(lossy, again, strict=True):
        kept[i], accuracies[i] = tried[i][1].delta, found
    return [
        _result(m, t, delta, found, points, scores)
        for (m, t), delta, found, points, scores in zip(tried, kept, accuracies, loses, whole, strict=True)
    ]


def _result(
    m: Member,
    t: TrainedMember,
    delta: dict[str, torch.Tensor],
    accuracies: dict[float, float],
    loses: float,
    whole: Sequence[Score],
) -> FineTuneResult:
    best = best_strength(accuracies)
    metrics = {
        "solved_accuracy": m.floor,
        "accuracy": accuracies[1.0],
        "best_accuracy": accuracies[best],
        "best_strength": best,
        "gain": accuracies[best] - m.floor,
        "half_precision_loses": loses,
        "learning_rate": m.rate,
        "last_loss": t.curve[-1][1],
    }
    if t.heads:
        metrics["head_accuracy"] = sum(s.head_accuracy for s in whole) / len(whole)
    heads: dict[str, torch.Tensor] = {}
    for name, (weight, bias) in zip(m.task.datasets, t.heads, strict=False):
        heads |= {f"{name}/weight": weight, f"{name}/bias": bias}
    probe = m.prepared.probes[0]
    return FineTuneResult(delta, heads, probe.support, probe.labels, m.prepared.embedding, metrics, t.curve)


def _strengths(wanted: Sequence[tuple[Member, Delta]], base: nn.Module, at_once: int) -> list[dict[float, float]]:
    """Strength -> mean accuracy over a member's probes: of none, half and whole, and of a quarter beside the better."""

    def measure(strengths: Sequence[Sequence[float]]) -> Iterator[dict[float, float]]:
        trials = [(m.prepared, d, s, None) for (m, d), some in zip(wanted, strengths, strict=True) for s in some]
        scores = iter(score_probes(trials, base, at_once))
        return ({s: mean_accuracy(next(scores)) for s in some} for some in strengths)

    found = [{0.0: m.floor} | a for (m, _), a in zip(wanted, measure([(0.5, 1.0)] * len(wanted)), strict=True)]
    between = [(0.75,) if a[1.0] >= a[0.5] else (0.25,) for a in found]
    return [a | b for a, b in zip(found, measure(between), strict=True)]


def score_probes(
    wanted: Sequence[tuple[PreparedTask, Delta, float, Sequence[Head] | None]], base: nn.Module, at_once: int
) -> list[list[Score]]:
    """A delta at a strength, with the heads that it has, on each probe of its task."""
    trials = [
        Trial(probe, delta, strength, head)
        for p, delta, strength, heads in wanted
        for probe, head in itertools.zip_longest(p.probes, heads or ())
    ]
    scores = iter(score(base, trials, at_once))
    return [[next(scores) for _ in p.probes] for p, *_ in wanted]


def is_finite(t: TrainedMember) -> bool:
    tensors: Iterable[torch.Tensor] = (*t.delta.values(), *(v for head in t.heads for v in head))
    return all(torch.isfinite(v).all() for v in tensors)
