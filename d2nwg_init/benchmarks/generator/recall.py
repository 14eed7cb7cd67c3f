"""Does a dataset's embedding tell its weights? Retrieval of zoo entries by images that were never seen."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from pretrained_generators.generator import Generator
from pretrained_generators.training.episodes import Episode
from pretrained_generators.training.functional import episode_loss
from pretrained_generators.training.zoo_data import target_delta
from zoo_builder.backbones import prepare_images
from zoo_builder.delta_library import cosines, ridge_weights
from zoo_builder.domain_images import SharedImages, sample_images
from zoo_builder.progress import progress_bar
from zoo_builder.sources import SourceRecord
from zoo_builder.store import ZooEntry
from zoo_builder.survey import load_unchanged
from zoo_builder.tasks import FineTuneTask

RIDGE = 0.01  # of the map from latents to embeddings, see ridge_weights
BATCH = 128  # images of a gradient


@torch.no_grad()
def recall_at_1(
    generator: Generator,
    learnt: list[ZooEntry],
    kept_back: list[ZooEntry],
    data_dir: Path,
    sources: Mapping[str, SourceRecord],
) -> dict[str, float]:
    """Share in percent of queries whose nearest key is their own.

    A query is the embedding of a support set of a dataset's test images, which no weights were trained on (the zoo
    chose strengths and learning rates on them). Keys are weight latents of entries over one dataset in one domain,
    mapped to embeddings. The map that training aligns them by is not kept; for this one see `keys_of`.

    Beside them, for a rival that fits nothing, a query is the direction of `descent` at the base and a key the weights.

    Returns:
        Over queries for learnt entries "entry", where the key must be of the same dataset and domain, and "dataset",
        where any domain will do; over those for the entries kept back "kept_back", of the same dataset and domain; over
        all of them "base_gradient", by the rival, of the same dataset and domain. NaN where there are none.

    Raises:
        DataError: a dataset is not in `data_dir`, or not the one of the zoo's `sources`.
    """
    entries = [e for e in (*learnt, *kept_back) if len(e.task.datasets) == len(e.task.domains) == 1]
    fitted = torch.tensor([e in learnt for e in entries])
    hits: dict[str, list[bool]] = {"entry": [], "dataset": [], "kept_back": [], "base_gradient": []}
    if fitted.sum() < 2:  # the map of each key is fitted on another
        return dict.fromkeys(hits, float("nan"))
    chunks = torch.stack([generator.to_chunks(target_delta(e)) for e in entries])
    latents = torch.cat([generator.vae.encode(part)[0].flatten(1) for part in chunks.split(16)])
    known = torch.stack([_embed(generator, *e.support()) for e in entries])
    keys = keys_of(latents, known, fitted)
    size = generator.config.size
    load = functools.partial(load_unchanged, sources, data_dir, size, False)

    with tempfile.TemporaryDirectory(prefix="d2nwg-recall-") as folder:
        shared = SharedImages(Path(folder), size, load)
        with progress_bar("retrieval", total=len(entries)) as bar:
            for entry in entries:
                (name,), (domain,) = entry.task.datasets, entry.task.domains
                unseen = shared.view(name, domain, entry.task)
                images, index = sample_images(unseen.x_test, entry.task.support, entry.task.seed)
                bar.advance()
                if not len(index):
                    continue
                query = _embed(generator, images, unseen.y_test[index])
                found = entries[int(cosines(keys, query).argmax())].task
                hits["entry" if entry in learnt else "kept_back"].append(_seen(found) == _seen(entry.task))
                if entry in learnt:
                    hits["dataset"].append(found.datasets == entry.task.datasets)
                lower = descent(generator, images, unseen.y_test[index])
                near = F.cosine_similarity(chunks.flatten(1), lower.flatten()[None])  # about zero, where the base is
                found = entries[int(near.argmax())].task
                hits["base_gradient"].append(_seen(found) == _seen(entry.task))
    return {match: 100 * sum(own) / len(own) if own else float("nan") for match, own in hits.items()}


def descent(generator: Generator, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Where the loss of uint8 images [N, 3, S, S], each under the head that is solved without it, falls fastest from
    the fitted base: minus its gradient in standardised chunks [n, chunk]."""
    chunks = torch.zeros(generator.config.layout.num_chunks, generator.config.layout.chunk, requires_grad=True)
    state, parts = generator.base.state_dict(), -(-len(labels) // BATCH)
    with torch.enable_grad():
        for i in range(parts):  # of all classes each, in whatever order they come
            seen, renumbered = labels[i::parts].unique(return_inverse=True)
            episode = Episode(images[i::parts], renumbered, len(seen))
            delta = generator.to_delta(chunks)
            episode_loss(generator.base, state, delta, episode, generator.config.batchnorm).backward()
    assert chunks.grad is not None
    return -chunks.grad


def _seen(task: FineTuneTask) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return task.datasets, task.domains


def keys_of(latents: torch.Tensor, embeddings: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """Latents [E, z] as embeddings [E, k], each by ridge regression on all other entries that are `fitted` on [E]. With
    so few of so many numbers, a map that was fitted on an entry gives it its own embedding, whatever its weights."""
    keys = []
    for i, latent in enumerate(latents):
        others = fitted & (torch.arange(len(latents)) != i)
        keys.append(ridge_weights(latents[others], latent, RIDGE) @ embeddings[others])
    return torch.stack(keys)


def _embed(generator: Generator, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    features = generator.features(prepare_images(generator.base, images))
    return generator.encoder(features, labels, int(labels.max()) + 1)[1]
