"""What survives each stage, in accuracy: of the gain of zoo deltas, how much the VAE keeps and how much samples have.

Accuracies are those of support images, each under a head that is solved without it, so that no dataset is needed beyond
the zoo. The zoo's own bodies were trained on these images: what is beside them has the harder task.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from pretrained_generators.generator import Generator
from pretrained_generators.training.zoo_data import prepared_support, target_delta
from zoo_builder.attention_cache import forget_biases
from zoo_builder.backbones import EVAL_BATCH
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.batchnorm_fit import fit_batchnorm
from zoo_builder.model_stack import shifted
from zoo_builder.progress import progress_bar
from zoo_builder.solved_head import solve_head
from zoo_builder.store import ZooEntry

# What a bundle must reach: shares, of entries that were kept out of training; a ratio, percent, points of accuracy.
GATES = {
    "reconstruction_gain_kept": 0.9,
    "sampling_gain_kept_back": 0.85,
    "compression": 8.0,
    "recall_at_1": 90.0,
    "condition_shuffled_drop": 3.0,
}

Reproduce = Callable[[ZooEntry, torch.Tensor, torch.Tensor], Sequence[Mapping[str, torch.Tensor]]]
Way = TypeVar("Way", bound=Hashable)


@dataclass(frozen=True)
class GainKept:
    original: float  # mean gain of the entries over their base, in points of accuracy
    reproduced: float  # the same of what was decoded or sampled

    @property
    def share(self) -> float:
        return self.reproduced / self.original if self.original > 0 else float("nan")


def reconstruction_gain_kept(generator: Generator, entries: list[ZooEntry]) -> GainKept:
    """Decoded deltas against their originals."""

    def decoded(entry: ZooEntry, *_: object) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad():
            latent = generator.vae.encode(generator.to_chunks(target_delta(entry))[None])[0]
            return [generator.to_delta(generator.vae.decode(latent)[0])]

    return gains_kept("measuring reconstruction", generator, entries, {"": decoded})[""]


def sampling_gain_kept(generator: Generator, entries: list[ZooEntry], samples: int, seed: int) -> GainKept:
    """Samples, without selection, for the embedding of each entry's support set."""

    def sampled(_: ZooEntry, images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        embedding = generator.embed(images, labels, int(labels.max()) + 1)
        return generator.sample_deltas(embedding, samples, seed)

    return gains_kept("measuring samples", generator, entries, {"": sampled})[""]


def gains_kept(
    title: str, generator: Generator, entries: list[ZooEntry], ways: Mapping[Way, Reproduce]
) -> dict[Way, GainKept]:
    """What each way to reproduce an entry's delta, in one or several copies, keeps of the entries' gain."""
    original: list[float] = []
    reproduced: dict[Way, list[float]] = {way: [] for way in ways}
    with progress_bar(title, total=len(entries) * len(ways)) as bar:
        for entry in entries:
            images, labels = prepared_support(generator, entry)
            left_out = LeftOut(generator, images, labels)
            floor = left_out.accuracy({})
            original.append(left_out.accuracy(target_delta(entry)) - floor)
            for way, reproduce in ways.items():
                reached = [left_out.accuracy(delta) for delta in reproduce(entry, images, labels)]
                reproduced[way].append(sum(reached) / len(reached) - floor)
                bar.advance()
    return {way: GainKept(sum(original) / len(original), sum(gains) / len(gains)) for way, gains in reproduced.items()}


class LeftOut:
    """Images [N, C, H, W] and their labels [N], each judged by a head that was solved without it, on the fitted base +
    any delta (an empty one is none), BatchNorm recalibrated. The base is put back after each."""

    def __init__(self, generator: Generator, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.base, self.images, self.labels = generator.base, images, labels
        self.state = {k: v.clone() for k, v in self.base.state_dict().items()}
        self.fitted = shifted(self.state, fit_batchnorm(self.base, images, generator.config.batchnorm))

    def accuracy(self, delta: Mapping[str, torch.Tensor]) -> float:
        """In percent."""
        return 100 * (self.logits(delta).argmax(1) == self.labels).float().mean().item()

    def logits(self, delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[N, K]."""
        try:
            self.base.load_state_dict(shifted(self.fitted, delta))
            recalibrate_batchnorm(self.base, self.images)
            with torch.no_grad():
                features = torch.cat([self.base(batch) for batch in self.images.split(EVAL_BATCH)])
            return solve_head(features, self.labels, int(self.labels.max()) + 1).left_out_logits
        finally:
            self.base.load_state_dict(self.state)
            forget_biases(self.base)
