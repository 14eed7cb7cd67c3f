"""The audit of a bundle on the zoo that it was trained on: what it generates for tasks that were held back, beside the
models of those tasks, the models that it was trained on, and what is simpler than a generator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pretrained_generators.audit import (
    GENERATED,
    SCHEMA,
    Sighting,
    distances,
    gaussian,
    judge,
    largest_overlap,
    nearest_distance,
    noisy,
)
from pretrained_generators.audit_plot import draw_audit
from pretrained_generators.bundle import Bundle, BundleConfig
from pretrained_generators.generator import Generator
from pretrained_generators.training.gates import LeftOut
from pretrained_generators.training.zoo_data import prepared_support, target_delta
from zoo_builder.delta_library import DeltaLibrary
from zoo_builder.errors import BundleError
from zoo_builder.files import write_text_atomically
from zoo_builder.progress import progress_bar
from zoo_builder.store import Zoo, ZooEntry, files_sha256

SIGMAS = (0.1, 0.3, 1.0)  # of the noise on the nearest model
RETRAINED = (
    "The bundle does not tell the hashes of what it was trained on: the training models seen here are of the same "
    "tasks, and may have been trained again."
)
NEIGHBOURS = 12  # training models, those nearest to a held-out one, whose wrong answers all are compared with


def audit_zoo(bundle: Bundle, zoo: Zoo, samples: int = 2, seed: int = 0) -> list[Sighting]:
    """Sightings of all methods on every entry that the bundle held back.

    Raises:
        BundleError: the zoo is not the one it was trained on, or was built again since, to other weights; or the bundle
            does not say what it held back.
    """
    config = bundle.config
    if (config.base_sha256, config.generator.batchnorm) != (zoo.base_sha256, zoo.batchnorm):
        raise BundleError(f"{config.name} was trained on a zoo of another base than {zoo.path} has. Give its own zoo.")
    if not config.learnt or not config.kept_back:
        raise BundleError(f"{config.name} does not say which entries it learnt from: train it again to audit it.")
    learnt, held = ([zoo.entry(i) for i in ids] for ids in (config.learnt, config.kept_back))
    if config.zoo_sha256 not in (None, files_sha256(learnt)):
        raise BundleError(
            f"{config.name} was trained on other weights than {zoo.path} has: it was built again. Give its own zoo, or "
            "train the bundle on this one."
        )
    library = _library(bundle.generator, learnt)
    found: list[Sighting] = []
    with progress_bar("audit", total=len(held)) as bar:
        for i, entry in enumerate(held):
            others = (e for e in held[i:] + held[:i] + learnt if e.task.datasets != entry.task.datasets)
            other = next(others, None)
            found += _audit_entry(bundle.generator, entry, other, library, samples, seed)
            bar.advance()
            bar.note(entry.task.datasets[0])
    return found


def _library(generator: Generator, learnt: Sequence[ZooEntry]) -> DeltaLibrary:
    """The training models as deltas, each at its strength, for retrieval and regression."""
    return DeltaLibrary(
        ids=tuple(e.id for e in learnt),
        datasets=tuple("+".join(e.task.datasets) for e in learnt),
        shapes={b.name: torch.Size(b.shape) for b in generator.config.layout.blocks},
        stacked=torch.stack([_flat(generator, target_delta(e)) for e in learnt]),
        strengths=torch.ones(len(learnt)),
        embeddings=torch.stack([e.embedding() for e in learnt]),
    )


def _audit_entry(
    generator: Generator, entry: ZooEntry, other: ZooEntry | None, library: DeltaLibrary, samples: int, seed: int
) -> Iterator[Sighting]:
    left_out = LeftOut(generator, *prepared_support(generator, entry))
    known, own = library.stacked, _flat(generator, target_delta(entry))
    tried = [("held_out", own), *_generated(generator, entry, other, samples, seed)]
    tried += _simpler(generator, library, entry, samples, seed)

    def wrong(flat: torch.Tensor) -> torch.Tensor:
        return left_out.logits(_delta(generator, flat)).argmax(1) != left_out.labels

    # Those that anything tried might be a copy of, and those that were made for something alike.
    close = {int(distances(flat, known).argmin()) for _, flat in tried}
    close |= set(distances(own, known).argsort()[:NEIGHBOURS].tolist())
    answers = {i: wrong(known[i]) for i in sorted(close)}

    def seen(method: str, flat: torch.Tensor, w: torch.Tensor, others: Sequence[int]) -> Sighting:
        return Sighting(
            entry.id,
            entry.task.datasets[0],
            method,
            nearest_distance(flat, known[others]),
            largest_overlap(w, torch.stack([answers[i] for i in others if i in answers])),
            100 * (~w).float().mean().item(),
        )

    everyone = list(range(len(known)))
    # What it went on from is near to it, and no model of another task.
    ancestors = {a.id for a in entry.ancestry()}
    unrelated = [i for i in everyone if library.ids[i] not in ancestors] or everyone
    for method, flat in tried:
        yield seen(method, flat, wrong(flat), unrelated if method == "held_out" else everyone)
    for i, w in answers.items():
        yield seen("training", known[i], w, everyone[:i] + everyone[i + 1 :])


def _generated(
    generator: Generator, entry: ZooEntry, other: ZooEntry | None, samples: int, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Under the entry's own condition, another one's, where there is another dataset, and none; and the anchor, a
    mixture of known deltas, which the first are added to."""
    for method, shown in zip(GENERATED, (entry, other, None), strict=True):
        if shown is None and method == "generated_shuffled":
            continue
        images_of = None if shown is None else prepared_support(generator, shown)
        condition = None if images_of is None else generator.embed(*images_of, int(images_of[1].max()) + 1)
        for delta in generator.sample_deltas(condition, samples, seed):
            yield method, _flat(generator, delta)
        if method == "generated" and condition is not None and generator.probes is not None:
            yield "anchor", _flat(generator, generator.decoded(generator.anchor(condition)))


def _simpler(
    generator: Generator, library: DeltaLibrary, entry: ZooEntry, samples: int, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """What needs the zoo and no generator; of what is drawn at random as many as are generated."""
    known, query = library.stacked, entry.embedding()
    sizes = {b.name: b.size for b in generator.config.layout.blocks}
    nearest = library.nearest(query) @ known
    yield "nearest", nearest
    yield "zoo_mean", library.mean() @ known
    yield "similarity_mean", library.by_similarity(query) @ known
    yield "least_squares", library.least_squares(query) @ known
    noise = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield "gaussian", gaussian(known, noise)
    for sigma in SIGMAS:
        for _ in range(samples):
            yield f"noise_on_nearest_{sigma:g}", noisy(nearest, sizes, sigma, noise)


def _flat(generator: Generator, delta: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([delta[b.name].reshape(-1) for b in generator.config.layout.blocks])


def _delta(generator: Generator, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    blocks = generator.config.layout.blocks
    return {b.name: p.view(b.shape) for b, p in zip(blocks, flat.split([b.size for b in blocks]), strict=True)}


def write_audit(found: Sequence[Sighting], bundle: BundleConfig, folder: Path) -> dict[str, Any]:
    """Write audit.json (all sightings and the verdict) and audit.svg into a bundle's folder; the former is returned."""
    verdict = judge(found)
    text = f"{verdict} {RETRAINED}" if bundle.zoo_sha256 is None else str(verdict)
    report = {"schema": SCHEMA, "verdict": asdict(verdict) | {"text": text}, "models": [asdict(s) for s in found]}
    write_text_atomically(folder / "audit.json", json.dumps(report, indent=1) + "\n")
    write_text_atomically(folder / "audit.svg", draw_audit(found))
    return report
