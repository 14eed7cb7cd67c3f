"""The audit of a bundle on the zoo that it was trained on: what it generates for tasks that were held back, beside the
models of those tasks, the models that it was trained on, and what is simpler than a generator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pretrained_generators.audit import Sighting, gaussian, judge, largest_overlap, nearest_distance, noisy
from pretrained_generators.audit_plot import draw_audit
from pretrained_generators.bundle import Bundle
from pretrained_generators.generator import Generator
from pretrained_generators.training.gates import left_out_logits
from pretrained_generators.training.zoo_data import target_delta
from zoo_builder.backbones import image_statistics
from zoo_builder.checkpoint import write_text_atomically
from zoo_builder.datasets.image_dataset import normalize_images
from zoo_builder.delta_library import cosines
from zoo_builder.errors import BundleError
from zoo_builder.progress import progress_bar
from zoo_builder.store import Zoo, ZooEntry

SIGMAS = (0.1, 0.3, 1.0)  # of the noise on the nearest model
NEIGHBOURS = 12  # training models, nearest in weights, that wrong answers are compared with


def audit_zoo(bundle: Bundle, zoo: Zoo, samples: int = 2, seed: int = 0) -> list[Sighting]:
    """Sightings of all methods on every entry that the bundle held back.

    Raises:
        BundleError: the zoo is not the one it was trained on, or the bundle does not say what it held back.
    """
    config = bundle.config
    if config.base_sha256 != zoo.base_sha256:
        raise BundleError(f"{config.name} was trained on a zoo of another base than {zoo.path} has. Give its own zoo.")
    if not config.learnt or not config.kept_back:
        raise BundleError(f"{config.name} does not say which entries it learnt from: train it again to audit it.")
    learnt, held = ([zoo.entry(i) for i in ids] for ids in (config.learnt, config.kept_back))
    known = torch.stack([_flat(bundle.generator, target_delta(e)) for e in learnt])
    embeddings = torch.stack([e.embedding() for e in learnt])
    shuffled = held[len(held) // 2 :] + held[: len(held) // 2]
    found: list[Sighting] = []
    with progress_bar("audit", total=len(held)) as bar:
        for entry, other in zip(held, shuffled, strict=True):
            found += _audit_entry(bundle.generator, entry, other, known, embeddings, samples, seed)
            bar.advance()
    return found


def _audit_entry(
    generator: Generator,
    entry: ZooEntry,
    other: ZooEntry,
    known: torch.Tensor,
    embeddings: torch.Tensor,
    samples: int,
    seed: int,
) -> Iterator[Sighting]:
    images, labels = _support(generator, entry)
    layout = generator.config.layout
    sizes = {b.name: b.size for b in layout.blocks}
    noise = torch.Generator().manual_seed(seed)

    def wrong(flat: torch.Tensor) -> torch.Tensor:
        delta = {b.name: p.view(b.shape) for b, p in zip(layout.blocks, flat.split(list(sizes.values())), strict=True)}
        return left_out_logits(generator, delta, images, labels).argmax(1) != labels

    def sampled(of: ZooEntry | None) -> list[torch.Tensor]:
        shown = None if of is None else _support(generator, of)
        embedding = None if shown is None else generator.embed(*shown, int(shown[1].max()) + 1)
        return [_flat(generator, d) for d in generator.sample_deltas(embedding, samples, seed)]

    nearest = known[cosines(embeddings, entry.embedding()).argmax()]
    tried = {
        "held_out": [_flat(generator, target_delta(entry))],
        "generated": sampled(entry),
        "generated_shuffled": sampled(other),
        "generated_null": sampled(None),
        "nearest": [nearest],
        "zoo_mean": [known.mean(0)],
        "gaussian": [gaussian(known, noise)],
        **{f"noise_on_nearest_{s:g}": [noisy(nearest, sizes, s, noise)] for s in SIGMAS},
    }
    own = tried["held_out"][0]
    close = known[(known - own).norm(dim=1).argsort()[:NEIGHBOURS]]
    answers = torch.stack([wrong(k) for k in close])
    for method, flats in tried.items():
        for flat in flats:
            w = wrong(flat)
            yield Sighting(
                entry.task.datasets[0],
                method,
                nearest_distance(flat, known),
                largest_overlap(w, answers),
                100 * (~w).float().mean().item(),
            )


def _support(generator: Generator, entry: ZooEntry) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = entry.support()
    return normalize_images(images, *image_statistics(generator.base)), labels


def _flat(generator: Generator, delta: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([delta[b.name].reshape(-1) for b in generator.config.layout.blocks])


def write_audit(found: Sequence[Sighting], folder: Path) -> dict[str, object]:
    """Write audit.json (all sightings and the verdict) and audit.svg into a bundle's folder; the former is returned."""
    verdict = judge(found)
    report = {"schema": 1, "verdict": asdict(verdict) | {"text": str(verdict)}, "models": [asdict(s) for s in found]}
    write_text_atomically(folder / "audit.json", json.dumps(report, indent=1) + "\n")
    write_text_atomically(folder / "audit.svg", draw_audit(found))
    return report
