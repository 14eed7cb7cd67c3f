"""What every entry of a zoo is worth on every dataset of it: which weights a dataset wants, its own ones aside.

A generator that learns from each dataset's own entries alone learns nothing of datasets that have none.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pretrained_generators.generator import Generator, standardize_channels
from pretrained_generators.probes import worth_of
from pretrained_generators.training.zoo_data import ZooData, target_delta
from zoo_builder.backbones import image_statistics
from zoo_builder.checkpoint import read_tensors, write_atomically
from zoo_builder.datasets.image_dataset import normalize_images
from zoo_builder.progress import progress_bar


def measure_transfer(generator: Generator, data: ZooData, file: Path) -> torch.Tensor:
    """[E, E + 1]: by how much each entry lowers the loss on each entry's support, in units of a guess's.

    The last column is the base's, zero. Rows that are done are kept in `file`.
    """
    done = list(read_tensors(file)[0]["gains"]) if file.exists() else []
    deltas = [target_delta(e) for e in data.entries]
    mean, std = image_statistics(generator.base)
    with progress_bar(f"trying every entry on every dataset -> {file.parent}", len(data.entries), len(done)) as bar:
        for entry in data.entries[len(done) :]:
            support, labels = entry.support()
            images = standardize_channels(normalize_images(support, mean, std))
            worth = worth_of(generator.base, deltas, images, labels, int(labels.max()) + 1)
            done.append(torch.cat([-worth[1:, 0], torch.zeros(1)]))
            write_atomically(file, {"gains": torch.stack(done)})
            bar.advance()
    return torch.stack(done)


def target_weights(data: ZooData, gains: torch.Tensor, temperature: float, own_share: float) -> torch.Tensor:
    """[E, E + 1], each row a distribution: how often an entry's latent (the base's, in the last column) is the target.

    Softmax of the gains over entries that do not belong to the same dataset; in `own_share` of the draws the entry
    itself.
    """
    foreign = gains / temperature  # a new tensor
    for i, entry in enumerate(data.entries):
        for j, other in enumerate(data.entries):
            if other.task.datasets == entry.task.datasets:
                foreign[i, j] = -torch.inf
    own = torch.eye(*gains.shape)
    return own_share * own + (1 - own_share) * foreign.softmax(1)
