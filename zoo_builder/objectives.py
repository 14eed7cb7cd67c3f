"""What a zoo task minimises: the left-out loss of a solved head on a few classes (episodic), or that of trained heads.

A draw is one model's batch of one step; batches of several models are padded to one shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from zoo_builder.domain_images import DomainImages, stable_seed
from zoo_builder.scoring import Delta
from zoo_builder.solved_head import left_out_loss
from zoo_builder.tasks import FineTuneTask, Training

Key = tuple[str, str]  # a dataset and a domain
Sources = Mapping[Key, DomainImages]
Fits = Mapping[Key, Delta]  # of the base's BatchNorm


class Draw(NamedTuple):
    source: DomainImages
    chosen: np.ndarray  # int64 [B], indices of train images
    labels: torch.Tensor  # int64 [B]
    num_classes: int
    head: int  # which of the task's trained heads
    fit: Delta  # of the base's BatchNorm


class Batch(NamedTuple):
    images: torch.Tensor  # uint8 [M, B, 3, S, S]
    labels: torch.Tensor  # int64 [M, B]
    present: torch.Tensor  # float [M, B]; zero for what fills up, copies of a model's own images
    classes: torch.Tensor  # bool [M, K], that a model has
    heads: torch.Tensor  # int64 [M]
    fit: dict[str, torch.Tensor]  # [M, ...] each, which is added to the models' parameters


class Objective(Protocol):
    def parameters(self) -> list[torch.Tensor]:
        """Its own [M, ...], which are trained with the bodies'."""

    def losses(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[M] of features [M, B, d]."""


class SolvedHeads:
    """Solve a ridge head on a batch of a few classes; the loss is that of each image left out of it."""

    def parameters(self) -> list[torch.Tensor]:
        return []

    def losses(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        return left_out_loss(features, batch.labels, batch.classes.sum(1), batch.present)


class TrainedHeads:
    """Ordinary fine-tuning; a model that is trained on several datasets has a head for each (a mixture)."""

    def __init__(self, heads: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]], device: torch.device) -> None:
        """`heads`: for each model its heads, as weight [K, d] and bias [K]."""
        flat = [head for model in heads for head in model]
        shape = (len(heads), max(map(len, heads)), max(len(bias) for _, bias in flat))
        self.weight = torch.zeros(*shape, flat[0][0].shape[1], device=device)
        self.bias = torch.zeros(*shape, device=device)
        for m, model in enumerate(heads):
            for h, (weight, bias) in enumerate(model):
                self.weight[m, h, : len(bias)], self.bias[m, h, : len(bias)] = weight, bias
        self.weight.requires_grad_(True)
        self.bias.requires_grad_(True)

    def parameters(self) -> list[torch.Tensor]:
        return [self.weight, self.bias]

    def heads(self, model: int, classes: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What a model's heads became, as weight [K, d] and bias [K], of so many classes each."""
        weight, bias = (t.detach()[model].cpu() for t in (self.weight, self.bias))
        return [(weight[h, :count].clone(), bias[h, :count].clone()) for h, count in enumerate(classes)]

    def losses(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        chosen = torch.arange(len(batch.heads), device=features.device), batch.heads
        classes = batch.classes.shape[1]
        weight, bias = self.weight[chosen][:, :classes], self.bias[chosen][:, :classes]
        return _cross_entropies(features @ weight.mT + bias[:, None], batch.labels, batch.present, batch.classes)


def _cross_entropies(
    logits: torch.Tensor, labels: torch.Tensor, present: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """[M], each the mean over a model's images that are present and its own classes."""
    logits = logits.masked_fill(~classes[:, None], -torch.inf)
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (each * present).sum(1) / present.sum(1)


class Sampler:
    """Draws the images of one task, step by step; the same ones for the same task."""

    def __init__(self, task: FineTuneTask, sources: Sources, fits: Fits) -> None:
        self.task, self.sources, self.fits = task, sources, fits
        self.rng = np.random.default_rng(stable_seed(task.seed, task.id, "batches"))
        self.coming = {key: np.empty(0, np.int64) for key in sources}  # of each source, in the order of an epoch

    def draw(self) -> Draw:
        return self._episode() if self.task.kind == "episodic" else self._batch()

    def _episode(self) -> Draw:
        task, rng = self.task, self.rng
        related = bool(task.related) and rng.random() >= task.own_share
        pool = [key for key in self.sources if key[0] in (task.related if related else task.datasets)]
        key = pool[rng.integers(len(pool))]
        source = self.sources[key]
        index, labels, count = draw_episode(source.members, task.training, rng)
        return Draw(source, index, labels, count, 0, self.fits[key])

    def _batch(self) -> Draw:
        key = list(self.sources)[self.rng.integers(len(self.sources))]
        source, size = self.sources[key], self.task.training.batch_size
        while len(self.coming[key]) < size:
            self.coming[key] = np.concatenate([self.coming[key], self.rng.permutation(len(source.y_train))])
        index, self.coming[key] = np.split(self.coming[key], [size])
        labels, head = source.y_train[index], self.task.datasets.index(key[0])
        return Draw(source, index, labels, source.num_classes, head, self.fits[key])


def draw_episode(
    members: Sequence[np.ndarray], training: Training, rng: np.random.Generator
) -> tuple[np.ndarray, torch.Tensor, int]:
    """Indices of images of a few random classes, as many of each; labels renumbered from 0; the class count.

    `members` are the indices of each class's images, which come class by class. No image is there twice: what is left
    out would still be in.
    """
    count = min(training.classes, len(members))
    quota = max(2, training.batch_size // count)
    chosen = [
        rng.choice(members[c], min(quota, len(members[c])), replace=False)
        for c in rng.choice(len(members), count, replace=False)
    ]
    labels = np.repeat(np.arange(count), list(map(len, chosen)))
    return np.concatenate(chosen), torch.from_numpy(labels), count


def collate(draws: Sequence[Draw], device: torch.device) -> Batch:
    """One batch of the draws of M models."""
    size = max(len(d.chosen) for d in draws)
    index, labels, present = (torch.stack(p) for p in zip(*(_filled(d, size) for d in draws), strict=True))
    index = index.to(device, non_blocking=True)
    images = [d.source.x_train[row] for d, row in zip(draws, index, strict=True)]
    counts = torch.tensor([d.num_classes for d in draws])
    classes = torch.arange(int(counts.max())) < counts[:, None]
    heads = torch.tensor([d.head for d in draws])
    return Batch(
        torch.stack(images) if len(images) > 1 else images[0][None],
        labels.to(device, non_blocking=True),
        present.to(device, non_blocking=True),
        classes.to(device, non_blocking=True),
        heads.to(device, non_blocking=True),
        {k: torch.stack([d.fit[k] for d in draws]) for k in draws[0].fit},
    )


def _filled(drawn: Draw, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Index, labels and presence of `size` images: its own, repeated until it is full."""
    where = torch.from_numpy(np.resize(np.arange(len(drawn.chosen)), size))
    present = torch.arange(size) < len(drawn.chosen)
    return torch.from_numpy(drawn.chosen)[where], drawn.labels[where], present.float()
