"""What competes: the model as it was passed; its own body, the bundle's base and generated bodies, each with BatchNorm
recalibrated and a head solved on the support images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pretrained_generators.generator import Generator
from zoo_builder.backbones import extract_features, find_classifier, predict
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.solved_head import solve_head
from zoo_builder.support_set import SupportSet


@dataclass(frozen=True)
class Candidate:
    kind: str  # "as_passed", "own_body", "base" or "generated"
    name: str
    state: dict[str, torch.Tensor]  # the whole model's state dict
    losses: torch.Tensor  # [N], cross-entropy of each support image, its head solved without it
    accuracy: float  # in percent, over the same predictions

    @property
    def usable(self) -> bool:
        """Weights that explode on the user's images are no candidate."""
        return bool(torch.isfinite(self.losses).all())


def set_body_and_solve(
    model: nn.Module, body: Mapping[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Set `body` (parameters by name; the others stay), recalibrate BatchNorm and solve the head, all in place.

    Returns:
        Logits [N, K] of each image from the head solved without it; NaN where the features are not finite.
    """
    model.load_state_dict(body, strict=False)
    recalibrate_batchnorm(model, images)
    _, head = find_classifier(model)
    features = extract_features(model, images).cpu()
    if not torch.isfinite(features).all():
        return torch.full((len(labels), head.out_features), float("nan"))
    solved = solve_head(features, labels, head.out_features)
    with torch.no_grad():
        head.weight.copy_(solved.weight)
        if head.bias is not None:
            head.bias.copy_(solved.bias)
    return solved.left_out_logits


def propose(
    model: nn.Module, support: SupportSet, generator: Generator | None, num_candidates: int, seed: int
) -> Iterator[Candidate]:
    """All candidates, the simplest first. `model` is only read."""
    parameter = next(model.parameters())
    # Channels last is the faster layout for convolutions, on CPUs above all.
    images = support.images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
    labels = support.labels
    yield _candidate("as_passed", "as_passed", model, predict(model, images).cpu(), labels)
    work = copy.deepcopy(model).to(memory_format=torch.channels_last)
    yield _candidate("own_body", "own_body", work, set_body_and_solve(work, {}, images, labels), labels)
    if generator is None:
        return
    base = generator.base_parameters()
    yield _candidate("base", "base", work, set_body_and_solve(work, base, images, labels), labels)
    embedding = generator.embed(support.images, labels, support.num_classes)
    for i, delta in enumerate(generator.sample_deltas(embedding, num_candidates, seed)):
        body = {k: v + delta[k] if k in delta else v for k, v in base.items()}
        logits = set_body_and_solve(work, body, images, labels)
        yield _candidate("generated", f"generated_{i}", work, logits, labels)


def _candidate(kind: str, name: str, model: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> Candidate:
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    losses = F.cross_entropy(logits, labels, reduction="none")
    return Candidate(kind, name, state, losses, 100 * (logits.argmax(1) == labels).float().mean().item())
