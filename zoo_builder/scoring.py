"""What a body is worth on a dataset: test accuracy of a head solved on a few hundred train images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from zoo_builder.backbones import prepare_images
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.domain_images import DomainImages, sample_images
from zoo_builder.errors import DataError
from zoo_builder.solved_head import solve_head

STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # that are tried, beside none at all


@dataclass(frozen=True)
class Probe:
    """Support and query images of one dataset."""

    support: torch.Tensor  # uint8 [n, 3, S, S]
    labels: torch.Tensor  # int64 [n], of the support
    images: torch.Tensor  # float [n + m, 3, S, S], normalised: the support, then the query
    query_labels: torch.Tensor  # int64 [m]
    num_classes: int

    @classmethod
    def of(cls, body: nn.Module, source: DomainImages, support: int, queries: int, seed: int) -> Probe:
        if not len(source.x_test):
            raise DataError("A dataset without test images cannot be scored on. Give it a test part.")
        images, index = sample_images(source.x_train, support, seed)
        query, query_index = sample_images(source.x_test, queries, seed)
        device = next(body.parameters()).device
        prepared = prepare_images(body, torch.cat([images, query]).to(device))
        return cls(images, source.y_train[index], prepared, source.y_test[query_index], source.num_classes)

    def features(self, body: nn.Module, query: bool = True) -> torch.Tensor:
        """[n + m, d] in evaluation mode; [n, d] of the support alone without `query`."""
        body.eval()
        images = self.images if query else self.images[: len(self.labels)]
        with torch.no_grad():
            return torch.cat([body(batch).float() for batch in images.split(256)]).cpu()

    def accuracies(self, body: nn.Module, head: nn.Linear | None = None) -> tuple[float, float]:
        """In percent, of a solved head and of `head` (NaN for none), after BatchNorm recalibration, which stays."""
        n = len(self.labels)
        recalibrate_batchnorm(body, self.images[:n])
        features = self.features(body)
        solved = solve_head(features[:n], self.labels, self.num_classes)
        logits = [features[n:] @ solved.weight.T + solved.bias]
        if head is not None:
            with torch.no_grad():
                logits.append(head(features[n:]))
        right = [100 * (x.argmax(1) == self.query_labels).float().mean().item() for x in logits]
        return right[0], right[1] if head is not None else float("nan")


@dataclass(frozen=True)
class Strengths:
    accuracies: dict[float, float]  # strength -> solved accuracy in percent, mean over the probes
    best: float

    @property
    def best_accuracy(self) -> float:
        return self.accuracies[self.best]


def mean_solved_accuracy(body: nn.Module, probes: list[Probe]) -> float:
    """In percent, over the probes; the body's BatchNorm statistics are left as those of the last."""
    return sum(probe.accuracies(body)[0] for probe in probes) / len(probes)


def best_strength(
    body: nn.Module,
    origin: Mapping[str, torch.Tensor],
    delta: Mapping[str, torch.Tensor],
    probes: list[Probe],
    floor: float,
) -> Strengths:
    """How strong a delta serves best, the stronger of two that are equal. `origin` is the base's state dict, `floor`
    its own mean solved accuracy."""
    accuracies = {0.0: floor}
    for strength in STRENGTHS:
        set_parameters(body, origin, delta, strength)
        accuracies[strength] = mean_solved_accuracy(body, probes)
    return Strengths(accuracies, max(accuracies, key=lambda s: (accuracies[s], s)))


def set_parameters(
    model: nn.Module, base: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], strength: float
) -> None:
    """Parameters become base + strength * delta, in place; those that `delta` lacks become the base's."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            change = delta[name].to(base[name]) if name in delta else 0.0
            parameter.copy_(base[name] + strength * change)
