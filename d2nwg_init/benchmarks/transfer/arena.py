"""One dataset, seed and number of shots: every method gets the same images read, model, and order of training."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from d2nwg_init.benchmarks.fine_tuning import shuffled_loader
from d2nwg_init.benchmarks.transfer.subject import Subject
from d2nwg_init.candidates import set_body_and_solve
from zoo_builder.backbones import load_body, predict, prepare_images
from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.model_stack import shifted
from zoo_builder.support_set import SupportSet, read_support_set

NUM_SUPPORT = 1024  # images that initialize() reads by default


@dataclass(frozen=True)
class Arena:
    subject: Subject
    dataset: ImageDataset
    seed: int  # draws the images read, the initial head and the order of training
    shots: int | None  # train images of each class; None takes all
    other: Arena | None = None  # another dataset, whose embedding a shuffled condition is

    @functools.cached_property
    def train(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images [N, 3, S, S] and labels [N]."""
        index = np.arange(len(self.dataset.y_train))
        if self.shots is not None:
            order = np.random.default_rng(self.seed).permutation(index)
            y = self.dataset.y_train[order]
            index = np.concatenate([order[y == c][: self.shots] for c in range(self.dataset.num_classes)])
        return self._tensors(self.dataset.x_train[index], self.dataset.y_train[index])

    @functools.cached_property
    def test(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._tensors(self.dataset.x_test, self.dataset.y_test)

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return prepare_images(self.subject.body, resize_images(x, self.subject.size)), torch.from_numpy(y)

    def loader(self) -> DataLoader:
        """A fresh one over the train images, as a user has it: what initialize() reads."""
        return shuffled_loader(*self.train, self.seed)

    def training_loader(self, images: int | None = None) -> DataLoader:
        """The same in whole batches, for training; over a random `images` of them, all if None."""
        x, y = self.train
        if images is not None:
            index = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))[:images]
            x, y = x[index], y[index]
        return shuffled_loader(x, y, self.seed, whole=True)

    def support_loader(self) -> DataLoader:
        """Over the images read alone, for training."""
        return shuffled_loader(self.support.images, self.support.labels, self.seed, whole=True)

    @functools.cached_property
    def support(self) -> SupportSet:
        """Exactly the images that initialize() reads."""
        return read_support_set(self.loader(), NUM_SUPPORT, self.dataset.num_classes)

    def embedding(self) -> torch.Tensor:
        """[k], as the zoo's entries are embedded. Not kept: each method pays for it."""
        return self.subject.embed(self.support.images, self.support.labels)

    def network_weights(self) -> torch.Tensor:
        """[E]: what the network regressor makes of the support."""
        assert self.subject.network is not None
        features = predict(self.subject.body, self.support.images)
        return self.subject.network.weights(features, self.support.labels, self.support.num_classes)

    def scratch(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.subject.backbone.create(num_classes=self.dataset.num_classes)

    def pretrained(self) -> nn.Module:
        """The base checkpoint, BatchNorm statistics included, with a fresh head: what users do today."""
        model = self.scratch()
        load_body(model, self.subject.base, self.subject.name)
        return model

    def solved(self, delta: Mapping[str, torch.Tensor], strength: float = 1.0) -> nn.Module:
        """base + strength * delta, BatchNorm fitted and recalibrated and the head solved on the images read."""
        return self.with_body(shifted(self.fitted_base(), delta, strength))

    def solved_base(self) -> nn.Module:
        """The base, BatchNorm recalibrated and the head solved on the images read."""
        return self.with_body(self.plain_base(self.support.images))

    def plain_base(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What to put in place of its parameters before BatchNorm is recalibrated on `images`, where nothing is
        generated: nothing, unless recalibrating alone would destroy it."""
        return self.subject.fitted(images) if self.subject.batchnorm == "absorbed" else {}

    def fitted_base(self) -> dict[str, torch.Tensor]:
        """Its parameters. Not kept: each method pays for it."""
        return self.subject.fitted(self.support.images)

    def with_body(self, body: Mapping[str, torch.Tensor]) -> nn.Module:
        """`body` in place of the base's parameters, BatchNorm recalibrated and the head solved on the images read."""
        model = self.pretrained().to(memory_format=torch.channels_last)
        set_body_and_solve(model, body, self.support.images, self.support.labels)
        return model
