"""The deterministic rival of a diffusion model: a Set Transformer from the generator's inputs, features and labels of
the support images, to the weights; one answer, the mean of all that could be right.

It gives coordinates in the span of the zoo's deltas, which holds all that it was taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pretrained_generators.dataset_encoder import DatasetEncoder, EncoderConfig
from pretrained_generators.training.loop import train_stage
from pretrained_generators.training.recipe import Stage
from pretrained_generators.training.zoo_data import draw_support
from zoo_builder.backbones import predict, prepare_images
from zoo_builder.delta_library import DeltaLibrary
from zoo_builder.store import ZooEntry

COMPONENTS = 48  # at most; principal directions of the zoo's deltas
STAGE = Stage(steps=500, learning_rate=1e-3, batch_size=16, weight_decay=0.1)
SHOTS, CLASSES = 16, 20  # of a support that is drawn for a step, at most


class NetworkRegressor(nn.Module):
    directions: torch.Tensor  # [C, E]: each principal component as weights of the zoo's entries
    mean: torch.Tensor  # [E], of the zoo's mean

    def __init__(self, feature_dim: int, library: DeltaLibrary) -> None:
        super().__init__()
        directions, self.targets = principal_components(library.gram, COMPONENTS)
        config = EncoderConfig()
        width = config.embedding
        self.encoder = DatasetEncoder(feature_dim, config)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(directions)))
        self.register_buffer("directions", directions)
        self.register_buffer("mean", library.mean())

    def forward(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        """Coordinates [C] of features [N, f] with labels [N]."""
        return self.head(self.encoder(features, labels, num_classes)[1])

    @torch.no_grad()
    def weights(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        """[E], of the zoo's entries."""
        return self.mean + self(features, labels, num_classes) @ self.directions

    @classmethod
    def trained(
        cls, body: nn.Module, library: DeltaLibrary, entries: Sequence[ZooEntry], folder: Path
    ) -> NetworkRegressor:
        """Trained on random parts of the entries' support sets; kept in `folder`, and read from there the next time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = cls(library.embeddings.shape[1] // 2, library)
        features, labels = [], []
        if not (folder / "regressor.safetensors").exists():
            for entry in entries:
                images, y = entry.support()
                features.append(predict(body, prepare_images(body, images)))
                labels.append(y)
            gathered = torch.cat(features)
            network.encoder.feature_mean.copy_(gathered.mean(0))
            network.encoder.feature_std.copy_(gathered.std(0).clamp_min(1e-4))

        def loss(generator: torch.Generator) -> torch.Tensor:
            batch = torch.randint(len(features), (STAGE.batch_size,), generator=generator)
            parts = [draw_support(features[i], labels[i], SHOTS, CLASSES, generator) for i in batch.tolist()]
            return F.mse_loss(torch.stack([network(*part) for part in parts]), network.targets[batch])

        train_stage("regressor", network, STAGE, loss, folder, 0)
        return network.requires_grad_(False).eval()


def principal_components(gram: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From inner products [E, E] of E vectors: up to `count` principal directions, each as weights [E] of the vectors
    less their mean, and every vector's coordinates [E, C] in them. All coordinates together have mean square 1."""
    e = len(gram)
    centre = torch.eye(e, dtype=gram.dtype) - 1 / e
    values, vectors = torch.linalg.eigh(centre @ gram @ centre)
    keep = values.argsort(descending=True)[:count]
    keep = keep[values[keep] > values.max() * 1e-9]
    singular, left = values[keep].sqrt(), vectors[:, keep]
    coordinates = left * singular
    unit = coordinates.square().mean().sqrt()
    directions = (left / singular).T @ centre * unit
    return directions.float(), (coordinates / unit).float()
