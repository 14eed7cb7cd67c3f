"""Zoo entries as tensors: what the stages of training are fed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pretrained_generators.bundle import Bundle, load_bundle
from pretrained_generators.generator import Generator
from pretrained_generators.training.processes import is_first, wait_for_all
from zoo_builder.backbones import prepare_images
from zoo_builder.checkpoint import read_tensors, write_atomically
from zoo_builder.errors import ZooError
from zoo_builder.progress import progress_bar
from zoo_builder.store import Zoo, ZooEntry


@dataclass(frozen=True)
class ZooData:
    entries: list[ZooEntry]
    chunks: torch.Tensor  # [E, n, chunk], standardised, each delta at its best strength; on the CPU
    features: list[torch.Tensor]  # of each entry's support images, [m, f]
    labels: list[torch.Tensor]  # [m], on the CPU, where parts are drawn
    probed: torch.Tensor  # [E, p], what the probes are worth on each support, standardised; p is 0 without probes

    def to(self, device: torch.device | str) -> ZooData:
        """With features and probes on a device: labels are drawn from, chunks done with once encoded."""
        return replace(self, features=[f.to(device) for f in self.features], probed=self.probed.to(device))


def load_bundle_beside(zoo: Zoo, name_or_path: str | Path) -> Bundle:
    """`load_bundle`, where a bundle that leaves its base out finds it in the zoo. Raises as that does."""
    return load_bundle(name_or_path, zoo.body())


def prepared_support(generator: Generator, entry: ZooEntry) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, C, S, S] as the base takes them, and labels [n]."""
    images, labels = entry.support()
    return prepare_images(generator.base, images), labels


def target_delta(entry: ZooEntry) -> dict[str, torch.Tensor]:
    """The delta times the strength that served its dataset best: what harms where it is strong is learnt as weak.
    Zero where nothing was trained."""
    delta, strength = entry.delta(), entry.metrics["best_strength"]
    return {k: delta[k] * strength if k in delta else torch.zeros(s) for k, s in entry.zoo.shapes.items()}


def select_entries(zoo: Zoo, plans: tuple[str, ...]) -> list[ZooEntry]:
    """Entries of the given plans.

    Raises:
        ZooError: fewer than eight, or none that changes the body.
    """
    entries = list(zoo.entries(plans))
    if len(entries) < 8:
        raise ZooError(f"{zoo.path} holds {len(entries)} entries of {list(plans)}; a generator needs at least 8.")
    if not any(e.metrics["best_strength"] and e.task.scope != "head" for e in entries):
        raise ZooError(
            f"{zoo.path}: no entry of {list(plans)} changes the body: each trained its head alone, or harms at any "
            "strength. There is nothing to learn from them; take other plans, or build the zoo with others."
        )
    return entries


def read_zoo_data(entries: list[ZooEntry], generator: Generator) -> ZooData:
    chunks, features, labels = [], [], []
    for entry in entries:
        chunks.append(generator.to_chunks(target_delta(entry)))
        images, y = prepared_support(generator, entry)
        features.append(generator.features(images))
        labels.append(y)
    return ZooData(entries, torch.stack(chunks), features, labels, torch.zeros(len(entries), 0))


def probe_zoo(
    generator: Generator, data: ZooData, latents: torch.Tensor, plans: tuple[str, ...], file: Path
) -> ZooData:
    """Make the entries of `plans` the generator's probes and try them on every support. Kept in `file`, and read from
    there the next time."""
    probes = generator.probes
    if probes is None:
        return data
    chosen = [i for i, e in enumerate(data.entries) if e.task.plan in plans]
    probes.latents.copy_(latents[chosen])
    if is_first() and not file.exists():
        tried = []
        with progress_bar("trying probes", total=len(data.entries)) as bar:
            for entry in data.entries:
                images, labels = (t.to(latents.device) for t in prepared_support(generator, entry))
                tried.append(generator.probe(images, labels, int(labels.max()) + 1))
                bar.advance()
        write_atomically(file, {"worth": torch.stack(tried)})
    wait_for_all()
    worth = read_tensors(file)[0]["worth"].to(latents.device)
    probes.mean.copy_(worth.mean(0))
    probes.std.copy_(worth.std(0).clamp_min(1e-3))
    return replace(data, probed=probes.standardised(worth))


def draw_support(
    features: torch.Tensor, labels: torch.Tensor, shots: int, classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A random part of a support set: some of its classes, some images of each; labels renumbered."""
    seen = labels.unique()
    low = min(2, len(seen))
    count = int(torch.randint(low, min(classes, len(seen)) + 1, (1,), generator=generator))
    chosen = seen[torch.randperm(len(seen), generator=generator)[:count]]
    size = int(torch.randint(1, shots + 1, (1,), generator=generator))
    order = torch.randperm(len(labels), generator=generator)
    index = torch.cat([order[labels[order] == c][:size] for c in chosen])
    renumbered = torch.searchsorted(chosen.sort().values, labels[index])
    return features[index], renumbered.to(features.device), count
