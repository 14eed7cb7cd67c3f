"""A zoo of real entries, built in a few seconds, and ways to change one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from tests.zoo_builder.synthetic import random_body, striped_dataset, write_npz
from zoo_builder.backbones import BackboneSpec
from zoo_builder.build import begin_zoo, build
from zoo_builder.checkpoint import write_atomically
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.store import Zoo, ZooEntry
from zoo_builder.tasks import Plan, Training, ZooRecipe

SHORT = Training(2, batch_size=16)
RECIPE = ZooRecipe(
    (
        Plan("trunk", "episodic", SHORT, over="cluster"),
        Plan("branch", "episodic", SHORT, start="trunk"),
        Plan("finetune", "finetune", SHORT, domains=("plain", "invert")),
        Plan("mix", "mixture", SHORT, over="all"),
    ),
    held_out=("secret",),
    leakage="off",
    size=32,
    support=24,
)
ENTRIES = 1 + 2 + 4 + 1


def write_data(root: Path, names: tuple[str, ...] = ("stripes", "bands", "secret")) -> Path:
    """A data folder, with a base beside the datasets."""
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / "base.safetensors", random_body().state_dict())
    for seed, name in enumerate(names):
        write_npz(root / f"{name}.npz", striped_dataset(name, seed=100 * seed))
    return root


def build_zoo(data: Path, out: Path, recipe: ZooRecipe = RECIPE) -> Zoo:
    """On one thread, as the builder's workers are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        zoo, tasks, sources = begin_zoo(out, BackboneSpec("test_resnet"), data / "base.safetensors", recipe, data)
        assert build(zoo, tasks, sources, data, ThreadPoolExecutor(1)) == {}
    finally:
        torch.set_num_threads(threads)
    return zoo


def result_of(entry: ZooEntry) -> FineTuneResult:
    """What an entry was written from."""
    support, labels = entry.support()
    half = {k: v.half() for k, v in entry.delta().items()}
    return FineTuneResult(half, entry.heads(), support, labels, entry.embedding(), entry.metrics, entry.curve)


def rewrite(entry: ZooEntry, **changes: object) -> None:
    """Put an entry with other contents in its place, whose hash fits."""
    entry.zoo.write(entry.task, replace(result_of(entry), **changes), entry.about)
