"""What survives each stage, in accuracy: of the gain of zoo deltas, how much the VAE keeps and how much samples have.

Accuracies are those of solved heads on left-out support images, so that no dataset is needed beyond the zoo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from pretrained_generators.generator import Generator
from pretrained_generators.training.zoo_data import target_delta
from zoo_builder.backbones import EVAL_BATCH, image_statistics
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.datasets.image_dataset import normalize_images
from zoo_builder.model_stack import shifted
from zoo_builder.progress import progress_bar
from zoo_builder.solved_head import solve_head
from zoo_builder.store import ZooEntry


@dataclass(frozen=True)
class GainKept:
    original: float  # mean gain of the entries over their base, in points of accuracy
    reproduced: float  # the same of what was decoded or sampled

    @property
    def share(self) -> float:
        return self.reproduced / self.original if self.original > 0 else float("nan")


def reconstruction_gain_kept(generator: Generator, entries: list[ZooEntry]) -> GainKept:
    """Decoded deltas against their originals."""
    layout = generator.config.layout

    def decoded(entry: ZooEntry, *_: object) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad():
            latent = generator.vae.encode(layout.to_chunks(target_delta(entry))[None])[0]
            return [layout.to_tensors(generator.vae.decode(latent)[0])]

    return _gain_kept("measuring reconstruction", generator, entries, decoded)


def sampling_gain_kept(generator: Generator, entries: list[ZooEntry], samples: int, seed: int) -> GainKept:
    """Samples, without selection, for the embedding of each entry's support set."""

    def sampled(_: ZooEntry, images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        embedding = generator.embed(images, labels, int(labels.max()) + 1)
        return generator.sample_deltas(embedding, samples, seed)

    return _gain_kept("measuring samples", generator, entries, sampled)


def _gain_kept(
    title: str,
    generator: Generator,
    entries: list[ZooEntry],
    reproduce: Callable[[ZooEntry, torch.Tensor, torch.Tensor], list[dict[str, torch.Tensor]]],
) -> GainKept:
    mean, std = image_statistics(generator.base)
    original, reproduced = [], []
    with progress_bar(title, total=len(entries)) as bar:
        for entry in entries:
            support, labels = entry.support()
            images = normalize_images(support, mean, std)
            floor = left_out_accuracy(generator, {}, images, labels)
            original.append(left_out_accuracy(generator, target_delta(entry), images, labels) - floor)
            gains = [left_out_accuracy(generator, d, images, labels) for d in reproduce(entry, images, labels)]
            reproduced.append(sum(gains) / len(gains) - floor)
            bar.advance()
    return GainKept(sum(original) / len(original), sum(reproduced) / len(reproduced))


def left_out_accuracy(
    generator: Generator, delta: Mapping[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> float:
    """Accuracy in percent of base + delta (an empty one is the base) with a solved head, BatchNorm recalibrated."""
    return 100 * (left_out_logits(generator, delta, images, labels).argmax(1) == labels).float().mean().item()


def left_out_logits(
    generator: Generator, delta: Mapping[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Logits [N, K] of each image from a head that was solved without it, on base + delta. The base is put back."""
    base = generator.base
    state = {k: v.clone() for k, v in base.state_dict().items()}
    try:
        base.load_state_dict(shifted(state, delta))
        recalibrate_batchnorm(base, images)
        with torch.no_grad():
            features = torch.cat([base(batch) for batch in images.split(EVAL_BATCH)])
        return solve_head(features, labels, int(labels.max()) + 1).left_out_logits
    finally:
        base.load_state_dict(state)
