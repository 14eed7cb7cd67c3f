"""Entries are scored again, as the builder scored them: what is on record is what the tensors do."""

from __future__ import annotations

import functools
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from zoo_builder.domain_images import SharedImages
from zoo_builder.errors import DataError
from zoo_builder.finetune import task_probes
from zoo_builder.progress import progress_bar
from zoo_builder.recipe import parse_config
from zoo_builder.scoring import Trial, mean_accuracy, score
from zoo_builder.sources import SourceRecord
from zoo_builder.store import Zoo, ZooEntry
from zoo_builder.survey import load_unchanged

# Points of accuracy. Nothing in a score is random: on one thread, as the builder's workers have, one machine gives the
# same bits again. Another processor or version of torch sums in another order, and then an image that lies between two
# classes may change sides: 0.1 points of 1000 test images, 0.5 of 200. There, allow a point.
TOLERANCE = 0.2


@dataclass(frozen=True)
class Rescored:
    """Solved accuracies in percent, on record and measured now."""

    id: str
    recorded_base: float
    measured_base: float
    recorded_best: float  # of the entry at its best strength
    measured_best: float

    @property
    def off(self) -> float:
        """The larger of the two differences, in points."""
        return max(abs(self.measured_base - self.recorded_base), abs(self.measured_best - self.recorded_best))


def spread_over_plans(entries: Sequence[ZooEntry], count: int, seed: int) -> list[ZooEntry]:
    """At most `count` entries at random, in turn of each plan."""
    turns: Counter[str] = Counter()
    drawn = []
    for entry in random.Random(seed).sample(entries, len(entries)):
        drawn.append((turns[entry.task.plan], entry))
        turns[entry.task.plan] += 1
    return [entry for _, entry in sorted(drawn, key=lambda pair: pair[0])[:count]]


def rescore(
    zoo: Zoo, entries: Sequence[ZooEntry], data_dir: str | Path, tolerance: float = TOLERANCE
) -> tuple[list[Rescored], list[str]]:
    """What `entries` score on the data, and the problems: other than on record by more than `tolerance` points, or a
    dataset that is not there or has changed."""
    # By the hash of its dataset each entry is bound to the images that it was scored on.
    kept = {name: s for entry in entries for name, s in entry.about.get("sources", {}).items()}
    sources = {name: parse_config(s, SourceRecord) for name, s in kept.items()}
    load = functools.partial(load_unchanged, sources, Path(data_dir), zoo.size, False)
    body = zoo.body().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rescored, problems = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="d2nwg-images-") as folder,
            progress_bar("scoring again", total=len(entries)) as bar,
        ):
            shared = SharedImages(Path(folder), zoo.size, load)
            for entry in entries:
                try:
                    row = _rescore(entry, body, shared)
                    rescored.append(row)
                    if not row.off <= tolerance:  # NaN is a problem too
                        problems.append(f"{entry.id}: its accuracy is {row.off:.2f} points off what is on record.")
                except DataError as e:
                    problems.append(f"{entry.id}: not scored again. {e}")
                bar.advance()
    finally:
        torch.set_num_threads(threads)
    return rescored, problems


def _rescore(entry: ZooEntry, body: nn.Module, shared: SharedImages) -> Rescored:
    task, domain = entry.task, entry.task.domains[0]
    views = {(name, domain): shared.view(name, domain, task) for name in task.datasets}
    probes = task_probes(task, body, views, entry.zoo.batchnorm)
    recorded = entry.metrics["solved_accuracy"], entry.metrics["best_accuracy"]
    delta, strength = entry.delta(), entry.metrics["best_strength"]
    base = mean_accuracy(score(body, [Trial(probe, {}) for probe in probes]))
    best = mean_accuracy(score(body, [Trial(probe, delta, strength) for probe in probes]))
    return Rescored(entry.id, recorded[0], base, recorded[1], best)
