"""What bodies are worth on datasets: test accuracy of a head solved on a few hundred train images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from zoo_builder.backbones import EVAL_BATCH, prepare_images
from zoo_builder.batchnorm import equal_batches
from zoo_builder.batchnorm_fit import BatchNormFit, fit_batchnorm
from zoo_builder.domain_images import DomainImages, sample_images
from zoo_builder.errors import DataError
from zoo_builder.model_stack import ModelStack, shifted
from zoo_builder.solved_head import solve_head

Delta = Mapping[str, torch.Tensor]  # by parameter name; what is not there is the base's
Head = tuple[torch.Tensor, torch.Tensor]  # weight [K, d] and bias [K]


@dataclass(frozen=True)
class Probe:
    """Support and query images of one dataset."""

    support: torch.Tensor  # uint8 [n, 3, S, S]
    labels: torch.Tensor  # int64 [n], of the support
    images: torch.Tensor  # float [n + m, C, S, S], normalised: the support, then the query
    query_labels: torch.Tensor  # int64 [m]
    num_classes: int
    fit: Delta  # of the base's BatchNorm to the support

    @classmethod
    def of(
        cls,
        body: nn.Module,
        source: DomainImages,
        support: int,
        queries: int,
        seed: int,
        batchnorm: BatchNormFit,
    ) -> Probe:
        if not len(source.x_test):
            raise DataError("A dataset without test images cannot be scored on. Give it a test part.")
        images, index = sample_images(source.x_train, support, seed)
        query, query_index = sample_images(source.x_test, queries, seed)
        device = next(body.parameters()).device
        prepared = prepare_images(body, torch.cat([images, query]).to(device))
        fit = fit_batchnorm(body, prepared[: len(images)], batchnorm)
        labels, query_labels = source.y_train[index], source.y_test[query_index]
        return cls(images.cpu(), labels, prepared, query_labels, source.num_classes, fit)


@dataclass(frozen=True)
class Trial:
    """A body, base + fit + strength * delta, on a dataset; with a head of its own, if it has one."""

    probe: Probe
    delta: Delta
    strength: float = 1.0
    head: Head | None = None


@dataclass(frozen=True)
class Score:
    accuracy: float  # in percent, of the solved head
    head_accuracy: float  # of the head of the trial; NaN for none
    solved: Head


@torch.no_grad()
def score(body: nn.Module, trials: Sequence[Trial], at_once: int = 1) -> list[Score]:
    """A score for each trial, after BatchNorm recalibration on its support, for up to `at_once` trials in one pass.
    `body` is the base, which stays as it is."""
    base = {k: v.detach() for k, v in body.named_parameters()}
    scores: dict[int, Score] = {}
    for chunk in _chunks(trials, at_once):
        together = [trials[i] for i in chunk]
        scores.update(zip(chunk, _score_together(body, base, together), strict=True))
    return [scores[i] for i in range(len(trials))]


def _chunks(trials: Sequence[Trial], at_once: int) -> Iterator[list[int]]:
    """Places of trials with equally many support images, at most `at_once` of them."""
    groups: dict[int, list[int]] = {}
    for i, trial in enumerate(trials):
        groups.setdefault(len(trial.probe.labels), []).append(i)
    for group in groups.values():
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]


def _score_together(body: nn.Module, base: Delta, trials: list[Trial]) -> Iterator[Score]:
    probes = [t.probe for t in trials]
    stack = ModelStack(body, [shifted(shifted(base, t.probe.fit), t.delta, t.strength) for t in trials])
    n = len(probes[0].labels)
    stack.recalibrate(torch.stack([p.images[part] for p in probes]) for part in equal_batches(torch.arange(n)))
    body.eval()
    longest = max(len(p.images) for p in probes)
    features = torch.cat(
        [
            # Shorter ones are filled up with their last image.
            stack.features(torch.stack([p.images[part.clamp(max=len(p.images) - 1)] for p in probes])).float()
            for part in torch.arange(longest).split(EVAL_BATCH)
        ],
        dim=1,
    )
    # A body whose features overflow is worth a guess.
    features[~features.isfinite().all(2).all(1)] = 0.0
    labels = torch.stack([p.labels for p in probes]).to(features.device)
    counts = torch.tensor([p.num_classes for p in probes], device=features.device)
    solved = solve_head(features[:, :n], labels, counts)
    for i, (trial, probe) in enumerate(zip(trials, probes, strict=True)):
        queries = features[i, n : len(probe.images)]
        head = (solved.weight[i, : probe.num_classes], solved.bias[i, : probe.num_classes])
        own = _accuracy(queries, trial.head, probe) if trial.head is not None else float("nan")
        yield Score(_accuracy(queries, head, probe), own, (head[0].cpu(), head[1].cpu()))


def _accuracy(features: torch.Tensor, head: Head, probe: Probe) -> float:
    weight, bias = (t.to(features) for t in head)
    return 100 * ((features @ weight.T + bias).argmax(1).cpu() == probe.query_labels).float().mean().item()


def best_strength(accuracies: Mapping[float, float]) -> float:
    """That of the highest accuracy; the stronger of two that are equal."""
    return max(accuracies, key=lambda strength: (accuracies[strength], strength))


def mean_accuracy(scores: Sequence[Score]) -> float:
    return sum(s.accuracy for s in scores) / len(scores)
