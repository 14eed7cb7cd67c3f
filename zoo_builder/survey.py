"""A look at every dataset before a zoo is begun: what it is, what leaks into it, what is related to it."""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from zoo_builder.absorbed_statistics import can_absorb
from zoo_builder.backbones import check_body, prepare_images
from zoo_builder.batchnorm_fit import is_lost
from zoo_builder.clusters import cluster_datasets, embed_dataset
from zoo_builder.datasets import ImageDataset, dataset_names, load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.domain_images import sample_images
from zoo_builder.errors import DataError, DataWarning, ModelError
from zoo_builder.leakage import check_leakage, held_out_datasets
from zoo_builder.progress import progress_bar
from zoo_builder.sources import FILE, SourceRecord, read_sources, write_sources
from zoo_builder.store import Zoo
from zoo_builder.tasks import ZooRecipe

log = logging.getLogger(__name__)


def surveyed(
    zoo: Zoo, recipe: ZooRecipe, names: Sequence[str], data_dir: Path, download: bool, remember: bool = True
) -> tuple[Zoo, dict[str, SourceRecord]]:
    """What the zoo knows of the datasets `names`; it looks at them the first time, and then remembers, those too that
    a later recipe leaves out. At the very first it also decides how BatchNorm is fitted to them, before any entry is
    made. Without `remember` the zoo on disk stays as it is.

    Raises:
        DataError: a dataset cannot be read, has changed, or leaks. ModelError: the base sees nothing in one.
        ZooError: what the zoo knows of them is damaged.
    """
    before = read_sources(zoo.path)
    if before.keys() >= set(names):
        known = {name: source for name, source in before.items() if name in names}
        return Zoo.open(zoo.path), known  # for another builder may have decided since it was opened
    body = zoo.body()
    check_body(body, zoo.size, zoo.backbone.in_chans)
    sources, lost = _survey(zoo, body.eval(), recipe, names, data_dir, download)
    for name in sources.keys() & before.keys():
        _check_unchanged(name, sources[name].sha256, before)
    zoo = Zoo.open(zoo.path)
    begun = (zoo.path / FILE).exists() or next((zoo.path / "rows").glob("*"), None) is not None
    if lost and not begun and can_absorb(body):
        log.warning("BatchNorm absorbs the statistics of datasets: rescaled, the base would be lost on %s.", lost)
        zoo = replace(zoo, batchnorm="absorbed")
        if remember:
            zoo.write_description()
    elif lost and zoo.batchnorm == "rescaled":
        log.warning(
            "lost base: with BatchNorm rescaled its features hardly vary any more on %s. What is trained on these will "
            "be of little use. Take another base, or for a zoo that was begun without them another --out.", lost
        )  # fmt: skip
    if remember:
        free = 1 + max(source.cluster for source in sources.values())  # clusters were numbered anew
        left = {n: replace(s, cluster=free + s.cluster) for n, s in before.items() if n not in sources}
        write_sources(zoo.path, sources | left)
    return zoo, sources


def _survey(
    zoo: Zoo, body: nn.Module, recipe: ZooRecipe, names: Sequence[str], data_dir: Path, download: bool
) -> tuple[dict[str, SourceRecord], list[str]]:
    """Look once at every dataset: leaks from the held-out ones, what the base sees in each, and on which it is lost
    where BatchNorm is rescaled."""
    load = functools.partial(load_dataset, data_dir=data_dir, size=zoo.size, download=download)
    embeddings, records, lost = {}, {}, []
    with progress_bar("looking at the datasets", total=len(names)) as bar:
        for name in names:
            dataset = load(name)
            records[name] = (dataset.licence, dataset.origin, dataset.sha256)
            index = sample_images(torch.arange(len(dataset.x_train)), recipe.support, recipe.seed)[0].numpy()
            images = prepare_images(body, resize_images(dataset.x_train[index], zoo.size))
            embeddings[name] = embed_dataset(body, images, torch.from_numpy(dataset.y_train[index]))
            if not 0 < embeddings[name].norm() < math.inf:
                raise ModelError(
                    f"The features that the base gives for images of {name!r} are all zero, or no numbers. Take "
                    "another --base, and another --out."
                )
            if is_lost(body, images):
                lost.append(name)
            bar.advance()
    if recipe.leakage != "off":
        check_leakage(
            map(load, names), held_out_datasets(recipe.held_out, dataset_names(data_dir), load), recipe.leakage
        )
    clusters = cluster_datasets(embeddings, recipe.max_clusters)
    sources = {name: SourceRecord(*records[name], i) for i, cluster in enumerate(clusters) for name in cluster}
    return sources, lost


def load_unchanged(
    sources: Mapping[str, SourceRecord], data_dir: Path, size: int, download: bool, name: str
) -> ImageDataset:
    """A dataset that is in `sources` as it was, any other as it is.

    Raises:
        DataError: the dataset is not what it was when the zoo was begun.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the survey has told of broken images
        dataset = load_dataset(name, data_dir, size=size, download=download)
    _check_unchanged(name, dataset.sha256, sources)
    return dataset


def _check_unchanged(name: str, sha256: str, sources: Mapping[str, SourceRecord]) -> None:
    if name in sources and sha256 != sources[name].sha256:
        raise DataError(
            f"The dataset {name!r} has changed since this zoo was begun: its SHA-256 is {sha256[:10]}..., expected "
            f"{sources[name].sha256[:10]}.... Put it back, or build another zoo."
        )
