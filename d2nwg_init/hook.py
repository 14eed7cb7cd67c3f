"""initialize(): the whole data flow, from a loader to the model's new weights."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from d2nwg_init.bundles import find_bundle
from d2nwg_init.candidates import Candidate, generated_bodies, propose
from d2nwg_init.report import CandidateScore, InitReport
from d2nwg_init.select import select
from pretrained_generators.bundle import Bundle
from pretrained_generators.generator import Generator
from zoo_builder.backbones import evaluating
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import DataError, ModelError
from zoo_builder.support_set import SupportSet, read_support_set, unchanged_random_state


def initialize(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    generator: str | Path | Bundle | Generator | None = "auto",
    num_candidates: int = 8,
    num_support: int = 1024,
    seed: int = 0,
) -> InitReport:
    """Give `model` the best of: weights generated for the data, a solved head on its own body, itself. In place.

    Args:
        model: an image classifier of timm or torchvision that ends in a linear layer.
        train_loader: batches of (images float [N, C, H, W], labels int [N]), transformed as for training.
        generator: "auto" takes an embedded bundle that fits, None generates nothing; or a generator, a
            bundle, its name or folder. One of the Hub must be in its client's cache; nothing is downloaded here.
        num_candidates: bodies to generate.
        num_support: images to read, at most.
        seed: of the generated weights; the same seed and images give the same weights.

    Returns:
        What was tried and chosen. On any error the model is bit for bit as it was; the global random state, the
        loader's generator and every module's training mode are so in any case.

    Raises:
        DataError: the loader's batches cannot be used. ModelError: the model cannot. BundleError: the bundle cannot.
    """
    seconds: dict[str, float] = {}
    num_classes = find_classifier(model).num_classes
    if num_classes < 2:
        raise ModelError(f"The model has {num_classes} output; create it with num_classes >= 2.")
    with unchanged_random_state(train_loader):
        with _timed(seconds, "reading"):
            support = read_support_set(train_loader, num_support, num_classes)
            _check_fit(model, support)
        with _timed(seconds, "bundle"):
            bundle, reason = find_bundle(model, generator)
        with _timed(seconds, "candidates"):
            bodies = generated_bodies(bundle.generator, support, num_candidates, seed) if bundle else ()
            candidates = list(propose(model, support, bodies))
        chosen = select(candidates)
        model.load_state_dict(chosen.state)
    return InitReport(
        chosen=chosen.name,
        candidates=tuple(_score(c) for c in candidates),
        bundle=bundle.config.name if bundle else None,
        bundle_sha256=bundle.config.weights_sha256 if bundle else None,
        reason=reason,
        images_read=len(support),
        num_classes=support.num_classes,
        classes_seen=support.classes_seen,
        seconds=seconds,
        seed=seed,
        versions={name: version(name) for name in ("d2nwg-init", "torch", "timm")},
    )


def _check_fit(model: nn.Module, support: SupportSet) -> None:
    """Run two images through the model, so that a wrong size or channel count is named before any work."""
    parameter = next(model.parameters())
    stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = support.images.shape[1]
    if stem is not None and stem.in_channels != channels:
        raise DataError(
            f"The loader gives images of {channels} channels and the model takes {stem.in_channels}. Convert the "
            f"images, or create the model with in_chans={channels}."
        )
    try:
        with evaluating(model):
            model(support.images[:2].to(parameter.device, parameter.dtype))
    except (RuntimeError, AssertionError, ValueError) as e:
        size = "x".join(map(str, support.images.shape[1:]))
        raise DataError(f"The model cannot take images of {size} as the loader gives them ({e}). Resize them.") from e


def _score(candidate: Candidate) -> CandidateScore:
    losses = candidate.losses
    error = (losses.std() / len(losses) ** 0.5).item()
    return CandidateScore(candidate.name, candidate.kind, losses.mean().item(), error, candidate.accuracy)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
