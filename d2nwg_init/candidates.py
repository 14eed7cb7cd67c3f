"""What competes: the model as it was passed; its own body, the bundle's base and generated bodies, each with BatchNorm
fitted to the support images and recalibrated, and a head solved on them, or the model's own head; and its own body as
it is, which goes on computing what it did."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init.accepted_model import first_weight
from pretrained_generators.generator import Generator
from zoo_builder.absorbed_statistics import absorb_statistics, can_absorb
from zoo_builder.backbones import caught_features, evaluating, extract_features, set_head
from zoo_builder.batchnorm import batchnorm_layers, batchnorm_training, equal_batches, recalibrate_batchnorm
from zoo_builder.classifier import find_classifier
from zoo_builder.datasets.image_dataset import spread_evenly
from zoo_builder.model_stack import shifted
from zoo_builder.rescaling import batchnorm_rescaling
from zoo_builder.solved_head import solve_head
from zoo_builder.support_set import SupportSet

FINALISTS = 2  # probes and samples that are judged beside the base
STRENGTHS = (1.0, 0.5, 2.0, 3.0)  # of generated deltas, in turn
SAMPLING_STEPS = 6  # the best of eight samples is as good as of 20 steps
ENOUGH_FOR_STATISTICS = 256  # images; with fewer, a head may be solved on statistics that training will replace
SCREENED = 64  # images that the finalists among the samples are found on, at most, but for
SCREENED_A_CLASS = 2  # so many for each class
JUDGES = 256  # images that all candidates are judged on, at most, but for
JUDGES_A_CLASS = 8  # so many for each class


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
    parameters: Mapping[str, torch.Tensor]  # of the body, in place of the model's own
    losses: torch.Tensor  # [M], cross-entropy of each judging image that can be left out, its head solved without it
    accuracy: float  # in percent, over the same predictions
    batchnorm: str = "recalibrated"  # or "absorbed": as it was passed, with the images' statistics; or "as passed"
    judged: bool = True  # False: no image can be left out, and these are the predictions of the model as it is

    @property
    def usable(self) -> bool:
        """Weights that explode on the user's images are no candidate."""
        return bool(torch.isfinite(self.losses).all())


@torch.no_grad()
def set_parameters(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """In place, those named, buffers too; of a model that loads no state without its metadata (mnasnet) as well."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in values.items():
        own[name].copy_(value)


def set_body_and_solve(
    model: nn.Module, body: Mapping[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Set `body` (parameters by name; the others stay), recalibrate BatchNorm and solve the head, all in place.

    Returns:
        Logits [N, K] of each image from the head solved without it; NaN where the features are not finite.
    """
    set_parameters(model, body)
    recalibrate_batchnorm(model, images)
    return solve_in_place(model, images, labels)


def solve_in_place(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Solve the head of `model` as it is; returns as `set_body_and_solve`."""
    head = find_classifier(model)
    features = extract_features(model, images).cpu()
    if not torch.isfinite(features).all():
        return torch.full((len(labels), head.num_classes), float("nan"))
    solved = solve_head(features, labels, head.num_classes)
    set_head(model, solved.weight, solved.bias, images)
    return solved.left_out_logits


def become(model: nn.Module, candidate: Candidate, support: SupportSet, solve: bool = True) -> None:
    """Make `model`, which is as it was passed, the candidate: BatchNorm recalibrated, and with `solve` the head solved,
    on all support images."""
    if candidate.kind == "as_passed":
        return
    set_body(model, candidate, support)
    images = placed(support.images, model)
    if candidate.batchnorm == "recalibrated":
        recalibrate_batchnorm(model, images)
    if solve:
        solve_in_place(model, images, support.labels)


def set_body(model: nn.Module, candidate: Candidate, support: SupportSet) -> None:
    """Make the body of `model`, which is as it was passed, that of the candidate, BatchNorm yet to be recalibrated."""
    set_parameters(model, candidate.parameters)
    if candidate.batchnorm == "absorbed":
        absorb_statistics(model, placed(support.images, model))


def propose(
    model: nn.Module,
    support: SupportSet,
    bodies: Iterable[Body],
    solve: bool = True,
    names: Collection[str] | None = None,
    own_kind: str = "own_body",
    untrained: bool = False,
) -> Iterator[Candidate]:
    """The model as it was passed, its own body and `bodies`, in this order. `model` is used to try them in, and is left
    with the last. `names`: of the parameters that may change, by default all. `own_kind`: of its own body, "base" where
    it is the bundle's.

    With `solve` each body gets a head solved on the images, else the model's own. All are judged on the same images, in
    one pass, in which BatchNorm has the statistics of the images at hand, as it will have after recalibration: a head
    solved on other statistics than those of training is lost in its first steps. The model's own body is tried as it is
    too, and will absorb the images' statistics; where it cannot, only of few images, which give poor statistics. An
    `untrained` one gets the statistics of the images alone: by those that BatchNorm begins with, which were measured on
    nothing, deep bodies all but vanish. An image that is the only one of its class judges no solved head: one solved
    without it knows nothing of the class.
    """
    chosen = judging_images(support)
    labels = support.labels[chosen]
    can_be_left_out = torch.bincount(labels)[labels] > 1
    judged = not solve or bool(can_be_left_out.any())
    judging = can_be_left_out if solve and judged else torch.ones_like(can_be_left_out)

    def candidate(
        kind: str, name: str, body: Mapping[str, torch.Tensor], logits: torch.Tensor, batchnorm: str = "recalibrated"
    ) -> Candidate:
        logits, y = logits[judging], labels[judging]
        losses = F.cross_entropy(logits, y, reduction="none")
        accuracy = 100 * (logits.argmax(1) == y).float().mean().item()
        return Candidate(kind, name, body, losses, accuracy, batchnorm, judged)

    def tried(kind: str, name: str, body: Mapping[str, torch.Tensor]) -> Candidate:
        set_parameters(model, body)
        with batchnorm_training(model), torch.no_grad():
            features, logits = _features_and_logits(model, support.images, chosen)
        if solve:
            logits = _solved_logits(features, labels, logits.shape[1], judged)
        return candidate(kind, name, body, logits)

    with evaluating(model):
        features, logits = _features_and_logits(model, support.images, chosen)
    yield candidate("as_passed", "as_passed", {}, logits)
    batchnorm = None if untrained else batchnorm_as_it_is(model, len(support), names)
    if solve and batchnorm:
        logits = _solved_logits(features, labels, logits.shape[1], judged)
        yield candidate(own_kind, "own_body_as_is", {}, logits, batchnorm)
    own = {name: p.detach() for name, p in model.named_parameters()}
    rescaling = {} if untrained else batchnorm_rescaling(model, support.images)
    yield tried(own_kind, "own_body", {k: own[k] + v for k, v in rescaling.items() if names is None or k in names})
    for body in bodies:
        yield tried(body.kind, body.name, body.parameters)


def batchnorm_as_it_is(model: nn.Module, num_images: int, names: Collection[str] | None) -> str | None:
    """What becomes of BatchNorm where the model's own body is tried as it is; None: it is not tried."""
    if can_absorb(model, names):
        return "absorbed"
    return "as passed" if batchnorm_layers(model) and num_images < ENOUGH_FOR_STATISTICS else None


def judging_images(support: SupportSet) -> torch.Tensor:
    """Indices of the images that candidates are judged on, spread evenly over those read."""
    return spread_evenly(len(support), max(JUDGES, JUDGES_A_CLASS * support.num_classes))


def placed(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Where and as the model computes, channels last; the same tensor where it is so."""
    weight = first_weight(model)
    return images.to(weight.device, weight.dtype, memory_format=torch.channels_last)


def _features_and_logits(
    model: nn.Module, images: torch.Tensor, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the classifier [M, d] and comes out of it [M, K] of the chosen images [M] of those [N, C, H, W];
    no copy is made of all images."""
    with caught_features(model) as caught:
        logits = torch.cat([model(placed(images[part], model)) for part in equal_batches(chosen)])
    features = torch.cat(caught) if caught else logits[:, :0]  # a head that is kept may not be run, but what it holds
    return features.cpu(), logits.float().cpu()


def _solved_logits(features: torch.Tensor, labels: torch.Tensor, num_classes: int, left_out: bool) -> torch.Tensor:
    """Logits [N, K] of a head solved without the image, or, where none can be `left_out`, with it; NaN where features
    are not finite."""
    if not torch.isfinite(features).all():
        return torch.full((len(labels), num_classes), float("nan"))
    solved = solve_head(features, labels, num_classes)
    return solved.left_out_logits if left_out else features @ solved.weight.T + solved.bias


@dataclass(frozen=True)
class _Draft:
    """A body that is not decoded: decoded, it is as large as the base."""

    kind: str  # "probe" or "generated"
    name: str
    latent: torch.Tensor
    strength: float = 1.0

    def at(self, strength: float) -> _Draft:
        return self if strength == 1 else replace(self, name=f"{self.name}_x{strength:g}", strength=strength)


def generated_bodies(
    generator: Generator, support: SupportSet, num_candidates: int, seed: int, finalists: int = FINALISTS
) -> Iterator[Body]:
    """The generator's base, fitted to the images; and of its probes, which samples must beat, and `num_candidates`
    samples for the support set, those `finalists` that do best on a part of the images.

    Samples for one dataset are nearly alike: each is tried at a strength of its own, and the best probe at all of them.
    With one image a class nothing tells bodies apart, and the weakest samples are taken.
    """
    base = generator.fitted_base(support.images)
    yield Body("base", "base", base)
    condition = generator.embed(support.images, support.labels, support.num_classes)
    latents = generator.sample_latents(condition, num_candidates, seed, SAMPLING_STEPS)
    in_turn = enumerate(zip(latents, itertools.cycle(STRENGTHS), strict=False))
    samples = [_Draft("generated", f"generated_{i}", z).at(strength) for i, (z, strength) in in_turn]
    probes = [
        _Draft("probe", f"probe_{i}", z) for i, z in enumerate(generator.probes.latents if generator.probes else ())
    ]
    drafts = [*probes, *samples]
    if len(drafts) > finalists and not (torch.bincount(support.labels) > 1).any():
        drafts = sorted(drafts, key=lambda d: (d.kind == "probe", d.strength))[:finalists]
    elif len(drafts) > finalists:
        known = generator.probes_worth(condition)
        untried = [*(probes[int(known.argmin())].at(s) for s in STRENGTHS[1:] if probes), *samples]
        classes = support.num_classes
        tried = spread_evenly(len(support), max(SCREENED, SCREENED_A_CLASS * classes))
        deltas = ({k: d.strength * v for k, v in generator.decoded(d.latent).items()} for d in untried)
        worth = generator.worth_of(deltas, support.images, support.labels, classes, tried)[1:, 0]
        best = torch.cat([known, worth]).argsort(stable=True)[:finalists].sort().values.tolist()
        drafts = [[*probes, *untried][i] for i in best]
    for draft in drafts:
        yield Body(draft.kind, draft.name, shifted(base, generator.decoded(draft.latent), draft.strength))
