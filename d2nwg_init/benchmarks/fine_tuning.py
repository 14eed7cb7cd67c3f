"""The ordinary fine-tuning that every initialisation is measured by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo_builder.backbones import image_statistics, predict
from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import normalize_images, resize_images
from zoo_builder.training_loop import one_cycle

PARTS = 1000  # of a cycle whose length is a time


@dataclass(frozen=True)
class FineTuning:
    steps: tuple[int, ...] = (0, 10, 30, 100)  # where test accuracy is measured; the last one ends it
    learning_rate: float = 1e-3  # peak of one cycle, AdamW
    weight_decay: float = 0.01
    batch_size: int = 64  # images
    clip: float = 1.0  # norm of the gradient, at most


def as_tensors(dataset: ImageDataset, model: nn.Module, size: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float [N, 3, size, size], normalised as timm's model configuration says, and labels [N]."""
    x, y = (dataset.x_train, dataset.y_train) if part == "train" else (dataset.x_test, dataset.y_test)
    return normalize_images(resize_images(x, size), *image_statistics(model)), torch.from_numpy(y)


def train_loader(dataset: ImageDataset, model: nn.Module, size: int, batch_size: int, seed: int) -> DataLoader:
    """A shuffling loader over the train images."""
    return shuffled_loader(*as_tensors(dataset, model, size, "train"), seed, batch_size)


def shuffled_loader(
    images: torch.Tensor, labels: torch.Tensor, seed: int, batch_size: int | None = None, *, whole: bool = False
) -> DataLoader:
    """A fresh one over images [N, C, H, W] and labels [N] gives the same order every time. `batch_size`: that of
    FineTuning if None. `whole`: for training, without a last batch of fewer images, unless it is the only one; of one
    image BatchNorm has no statistics."""
    size = batch_size or FineTuning.batch_size
    generator = torch.Generator().manual_seed(seed)
    last = whole and len(images) > size
    return DataLoader(TensorDataset(images, labels), size, shuffle=True, generator=generator, drop_last=last)


def train_steps(model: nn.Module, loader: Iterable, recipe: FineTuning, length: int) -> Iterator[tuple[int, float]]:
    """Train in place by one cycle of `length` steps, going through the loader as often as that takes; yields after
    every step its number, from 1, and the seconds of training so far. What is done between two steps is not counted."""
    return itertools.islice(_train(model, loader, recipe, length, lambda step, _: step), length)


def train_for(model: nn.Module, loader: Iterable, recipe: FineTuning, length: float) -> Iterator[tuple[int, float]]:
    """The same, by one cycle of `length` seconds, which the last step ends."""
    for step, seconds in _train(model, loader, recipe, PARTS, lambda _, seconds: int(PARTS * seconds / length)):
        yield step, seconds
        if seconds >= length:
            return


def _train(
    model: nn.Module, loader: Iterable, recipe: FineTuning, length: int, at: Callable[[int, float], int]
) -> Iterator[tuple[int, float]]:
    """`at` tells where in the cycle a step begins, by its number, from 0, and the seconds before it."""
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = one_cycle(optimizer, max(length, 1), max(1, length // 10), recipe.learning_rate / 20)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    seconds = 0.0
    for step in itertools.count():
        began = time.perf_counter()
        images, labels = next(batches)
        schedule.step_update(at(step, seconds))
        model.train()
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        seconds += time.perf_counter() - began
        yield step + 1, seconds


def fine_tune(
    model: nn.Module, loader: DataLoader, test: tuple[torch.Tensor, torch.Tensor], recipe: FineTuning
) -> dict[int, float]:
    """Train in place and return test accuracy in percent by step."""
    accuracies = {0: accuracy(model, *test)}
    for step, _ in train_steps(model, loader, recipe, recipe.steps[-1]):
        if step in recipe.steps:
            accuracies[step] = accuracy(model, *test)
    return accuracies


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 in percent."""
    return 100 * (predict(model, images).argmax(1) == labels).float().mean().item()
