"""A bundle's way to the Hub and back: pushed, pulled into a cache of its own, and used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from d2nwg_init.benchmarks.fine_tuning import train_loader
from d2nwg_init.benchmarks.results import Row
from d2nwg_init.hook import initialize
from pretrained_generators.bundle import bundle_folder, load_bundle
from pretrained_generators.hub import open_bundle
from pretrained_generators.push import push_bundle
from zoo_builder.datasets import ImageDataset


@dataclass(frozen=True)
class RoundTrip:
    commit: str  # of the Hub
    rows: list[Row]


def round_trip(source: str | Path, repo: str, private: bool, dataset: ImageDataset, cache: Path) -> RoundTrip:
    """Push an embedded bundle or a folder, pull the commit into `cache`, and initialize a model of its architecture.

    The rows: `seconds` of each of the three, `bytes` of the bundle, `tensors_differing` between what was pushed and
    what was pulled, `left_out_accuracy` of what `initialize` chose (%).

    Raises:
        BundleError: it has no results and hence no card, the Hub refuses, or what came back is not what was pushed.
    """
    folder = bundle_folder(source)
    sent = load_bundle(folder)
    name, seconds = sent.config.name, dict[str, float]()
    with _timed(seconds, "push"):
        commit = push_bundle(folder, repo, private).oid
    with _timed(seconds, "pull"):
        pulled = open_bundle(repo, revision=commit, cache_dir=cache)
    generator = pulled.config.generator
    model = generator.backbone.create(num_classes=dataset.num_classes)
    loader = train_loader(dataset, model, size=generator.size, batch_size=128, seed=0)
    with _timed(seconds, "initialize"):
        report = initialize(model, loader, generator=pulled)
    before, after = sent.generator.state_dict(), pulled.generator.state_dict()
    differing = sum(k not in after or not torch.equal(v, after[k]) for k, v in before.items())
    chosen = next(c for c in report.candidates if c.name == report.chosen)
    size = sum(f.bytes for f in pulled.config.files)
    rows = [Row(name, "none", what, 0, "seconds", seconds[what], "s") for what in ("push", "pull")]
    rows += [
        Row(name, "none", "pull", 0, "bytes", float(size), "B"),
        Row(name, "none", "pull", 0, "tensors_differing", float(differing), "1"),
        Row(name, dataset.name, "initialize", 0, "seconds", seconds["initialize"], "s"),
        Row(name, dataset.name, "initialize", 0, "left_out_accuracy", chosen.accuracy, "%"),
    ]
    return RoundTrip(commit, rows)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
