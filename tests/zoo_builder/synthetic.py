"""Made-up datasets, models and tasks, small enough for a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zoo_builder.backbones import create_backbone
from zoo_builder.datasets import ImageDataset
from zoo_builder.tasks import FineTuneTask, Training

MODEL, SIZE = "test_resnet", 32
CLASSES = ("left", "middle", "right")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def striped_images(count: int, classes: int = 3, size: int = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [count, size, size, 3] of noise with a faint bright band where the label says; labels in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 180, (count, size, size, 3), dtype=np.uint8)
    width = size // classes
    for image, label in zip(images, labels, strict=True):
        image[:, label * width : (label + 1) * width] += 40
    return images, labels


def striped_dataset(name: str = "stripes", train: int = 60, test: int = 24, seed: int = 0) -> ImageDataset:
    x, y = striped_images(train + test, seed=seed)
    return ImageDataset(name, x[:train], y[:train], x[train:], y[train:], CLASSES, "made up", "0" * 64)


def write_npz(path: Path, dataset: ImageDataset) -> None:
    arrays = {k: getattr(dataset, k) for k in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(path, **arrays, class_names=np.array(dataset.class_names))


def write_image_folder(path: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5, size: int = 64) -> None:
    """`path`/class/0.png ..., `count` images of noise a class."""
    for seed, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i, image in enumerate(striped_images(count, size=size, seed=seed)[0]):
            Image.fromarray(image).save(path / name / f"{i}.png")


def random_body(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_backbone(MODEL)


def tiny_task(kind: str = "episodic", **changes: object) -> FineTuneTask:
    fields = {
        "plan": "branch",
        "kind": kind,
        "datasets": ("stripes",),
        "related": (),
        "domains": ("plain",),
        "scope": "all",
        "training": Training(steps=2, learning_rates=(0.02,), batch_size=16),
        "own_share": 0.5,
        "class_subset": None,
        "size": SIZE,
        "support": 24,
        "seed": 0,
    }
    return FineTuneTask(**(fields | changes))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal names and equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in state.items()}
