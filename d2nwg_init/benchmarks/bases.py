"""Which model is worth pretraining as a base: test accuracy that each reaches from scratch in the same time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init.benchmarks.results import Row
from zoo_builder.backbones import BackboneSpec
from zoo_builder.datasets import ImageDataset
from zoo_builder.pretrain import PretrainConfig, pretrain

SPEED_STEPS = 5  # after one that warms up
METHOD = "pretraining"


def race_bases(models: Sequence[str], dataset: ImageDataset, size: int, seconds: float) -> Iterator[list[Row]]:
    """For each model its rows: `test_accuracy` (%) after as many whole epochs, one at least, as `seconds` allow by its
    speed; that time; its `images_per_second` in training; its `parameters`, head left out."""
    for name in models:
        config = PretrainConfig(model=name, size=size)
        model = BackboneSpec(name, img_size=size).create(num_classes=dataset.num_classes)
        speed = training_speed(model, size, config.batch_size, dataset.num_classes)
        epochs = max(1, round(seconds * speed / len(dataset.x_train)))
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            accuracy = pretrain(dataset, PretrainConfig(model=name, size=size, epochs=epochs), Path(folder) / "body")
        took = time.perf_counter() - began
        body = BackboneSpec(name, img_size=size).create()
        measured = (
            ("test_accuracy", accuracy, "%"),
            ("seconds", took, "s"),
            ("images_per_second", speed, "1/s"),
            ("parameters", float(sum(p.numel() for p in body.parameters())), "1"),
        )
        yield [
            Row(name, dataset.name, METHOD, config.seed, metric, value, unit, epoch=epochs)
            for metric, value, unit in measured
        ]


def training_speed(model: nn.Module, size: int, batch_size: int, num_classes: int) -> float:
    """Images a second of forward and backward passes."""
    model.to(memory_format=torch.channels_last).train()
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % num_classes
    began = 0.0
    for step in range(SPEED_STEPS + 1):
        if step == 1:
            began = time.perf_counter()
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
    return SPEED_STEPS * batch_size / (time.perf_counter() - began)
