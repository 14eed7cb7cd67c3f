"""What competes: the model as it was passed; its own body, the bundle's base and generated bodies, each with BatchNorm
recalibrated and a head solved on the support images, or the model's own head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init.accepted_model import working_copy
from d2nwg_init.undo import copied_state
from pretrained_generators.generator import Generator
from zoo_builder.backbones import extract_features, predict, set_head
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.classifier import find_classifier
from zoo_builder.model_stack import shifted
from zoo_builder.solved_head import solve_head
from zoo_builder.support_set import SupportSet

FINALISTS = 4  # probes and samples that are judged on all of the images


@dataclass(frozen=True)
class Body:
    """Parameters by name to try in place of the model's own; what is not there stays the model's."""

    kind: str  # "base", "probe" or "generated"
    name: str
    parameters: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    kind: str  # "as_passed", "own_body", "base", "probe" or "generated"
    name: str
    state: dict[str, torch.Tensor]  # the whole model's state dict
    losses: torch.Tensor  # [M], cross-entropy of each support image that can be left out, its head solved without it
    accuracy: float  # in percent, over the same predictions
    judged: bool = True  # False: no image can be left out, and these are the predictions of the model as it is

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
    head = find_classifier(model)
    features = extract_features(model, images).cpu()
    if not torch.isfinite(features).all():
        return torch.full((len(labels), head.num_classes), float("nan"))
    solved = solve_head(features, labels, head.num_classes)
    set_head(model, solved.weight, solved.bias, images)
    return solved.left_out_logits


def propose(
    model: nn.Module,
    support: SupportSet,
    bodies: Iterable[Body],
    solve: bool = True,
    device: torch.device | str | None = None,
) -> Iterator[Candidate]:
    """The model as it was passed, its own body and `bodies`, in this order; computed on `device`, by default the
    model's. `model` is only read.

    With `solve` each body gets a head solved on the images, else the model's own; always BatchNorm is recalibrated,
    since a head solved on other statistics than those of training is lost in its first steps. An image that is the
    only one of its class judges no solved head: one solved without it knows nothing of the class.
    """
    work = working_copy(model, device)
    parameter = next(work.parameters())
    images = support.images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
    labels = support.labels
    can_be_left_out = torch.bincount(labels)[labels] > 1
    judged = not solve or bool(can_be_left_out.any())
    judging = can_be_left_out if solve and judged else torch.ones_like(can_be_left_out)

    def candidate(kind: str, name: str, of: nn.Module, logits: torch.Tensor) -> Candidate:
        return _candidate(kind, name, of, logits.cpu()[judging], labels[judging], judged)

    def with_head(kind: str, name: str, body: Mapping[str, torch.Tensor]) -> Candidate:
        if solve:
            logits = set_body_and_solve(work, body, images, labels)
            return candidate(kind, name, work, logits if judged else predict(work, images))
        work.load_state_dict(body, strict=False)
        recalibrate_batchnorm(work, images)
        return candidate(kind, name, work, predict(work, images))

    yield candidate("as_passed", "as_passed", model, predict(work, images))
    yield with_head("own_body", "own_body", {})
    for body in bodies:
        yield with_head(body.kind, body.name, body.parameters)


def generated_bodies(
    generator: Generator, support: SupportSet, num_candidates: int, seed: int, finalists: int = FINALISTS
) -> Iterator[Body]:
    """The generator's base; and of its probes, which samples must beat, and `num_candidates` samples for the support
    set, those `finalists` that do best on a part of the images."""
    base = generator.base_parameters()
    yield Body("base", "base", base)
    deltas = {("probe", f"probe_{i}"): delta for i, delta in enumerate(generator.probe_deltas())}
    embedding = generator.embed(support.images, support.labels, support.num_classes)
    samples = generator.sample_deltas(embedding, num_candidates, seed)
    deltas |= {("generated", f"generated_{i}"): delta for i, delta in enumerate(samples)}
    if len(deltas) > finalists:
        worth = generator.worth_of(deltas.values(), support.images, support.labels, support.num_classes)
        best = worth[1:, 0].argsort(stable=True)[:finalists].sort().values.tolist()
        deltas = dict(list(deltas.items())[i] for i in best)
    for (kind, name), delta in deltas.items():
        yield Body(kind, name, shifted(base, delta))


def _candidate(
    kind: str, name: str, model: nn.Module, logits: torch.Tensor, labels: torch.Tensor, judged: bool
) -> Candidate:
    losses = F.cross_entropy(logits, labels, reduction="none")
    return Candidate(
        kind, name, copied_state(model), losses, 100 * (logits.argmax(1) == labels).float().mean().item(), judged
    )
