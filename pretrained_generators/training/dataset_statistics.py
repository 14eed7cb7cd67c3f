"""What the datasets that a generator is trained on look like to its base: see `nearest_datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pretrained_generators.generator import Generator
from pretrained_generators.nearest_datasets import feature_statistics
from zoo_builder.backbones import prepare_images
from zoo_builder.datasets import load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.datasets.read_images import stored_size
from zoo_builder.progress import progress_bar
from zoo_builder.store import ZooEntry

IMAGES = 512  # of a dataset, at random


def statistics_of_zoo(generator: Generator, entries: Sequence[ZooEntry], names: Sequence[str]) -> torch.Tensor | None:
    """[D, 2, f] of the images that the zoo's entries keep of each dataset, through no domain where there are such. None
    where there are none of a dataset."""
    rows = []
    for name in names:
        own = [e for e in entries if e.task.datasets[0] == name]
        chosen = [e for e in own if e.task.domains[0] == "plain"] or own
        if not chosen:
            return None
        images = torch.cat([e.support()[0] for e in chosen])
        rows.append(feature_statistics(generator, generator.features(prepare_images(generator.base, images))))
    return torch.stack(rows)


def statistics_of_datasets(generator: Generator, names: Sequence[str], data_dir: Path) -> torch.Tensor:
    """[D, 2, f] of a sample of each dataset's train images.

    Raises:
        DataError: a dataset is not in `data_dir`, nor elsewhere by its name.
    """
    rows = []
    with progress_bar("looking at datasets", total=len(names)) as bar:
        for name in names:
            x = load_dataset(name, data_dir, size=stored_size(generator.config.size)).x_train
            chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:IMAGES].numpy()
            images = prepare_images(generator.base, resize_images(x[chosen], generator.config.size))
            rows.append(feature_statistics(generator, generator.features(images)))
            bar.advance()
    return torch.stack(rows)
