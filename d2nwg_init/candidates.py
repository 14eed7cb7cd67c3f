"""What competes: the model as it was passed; its own body, the bundle's base and generated bodies, each with BatchNorm
recalibrated and a head solved on the support images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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


def as_passed(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Candidate:
    return _candidate("as_passed", "as_passed", model, predict(model, images).cpu(), labels)


def with_solved_head(
    kind: str, name: str, model: nn.Module, body: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> Candidate:
    """Set `body` (parameters by name; what is missing stays as it is), recalibrate, solve. Changes `model`, a copy."""
    model.load_state_dict(body, strict=False)
    recalibrate_batchnorm(model, images)
    _, head = find_classifier(model)
    solved = solve_head(extract_features(model, images).cpu(), labels, head.out_features)
    with torch.no_grad():
        head.weight.copy_(solved.weight)
        if head.bias is not None:
            head.bias.copy_(solved.bias)
    return _candidate(kind, name, model, solved.left_out_logits, labels)


def propose(
    model: nn.Module, support: SupportSet, generator: Generator | None, num_candidates: int, seed: int
) -> Iterator[Candidate]:
    """All candidates, the simplest first. `model` is only read."""
    parameter = next(model.parameters())
    images = support.images.to(parameter.device, parameter.dtype)
    labels = support.labels
    yield as_passed(model, images, labels)
    work = copy.deepcopy(model)
    yield with_solved_head("own_body", "own_body", work, {}, images, labels)
    if generator is None:
        return
    base = generator.base_parameters()
    yield with_solved_head("base", "base", work, base, images, labels)
    embedding = generator.embed(support.images, labels, support.num_classes)
    for i, delta in enumerate(generator.sample_deltas(embedding, num_candidates, seed)):
        body = {k: v + delta[k] if k in delta else v for k, v in base.items()}
        yield with_solved_head("generated", f"generated_{i}", work, body, images, labels)


def _candidate(kind: str, name: str, model: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> Candidate:
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    losses = F.cross_entropy(logits, labels, reduction="none")
    return Candidate(kind, name, state, losses, 100 * (logits.argmax(1) == labels).float().mean().item())
