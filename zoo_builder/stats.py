"""A zoo in figures: what its entries gain, how far they went from the base, and what they cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from zoo_builder.store import Zoo, ZooEntry


def stats(zoo: Zoo) -> dict[str, Any]:
    """Plain values, ready for JSON. Gains are in points over the solved base; delta norms in percent of the base's."""
    entries = list(zoo.entries())
    norms = delta_norms(zoo, entries)
    hours = sum(e.seconds for e in entries) / 3600
    return {
        "zoo": {
            "backbone": asdict(zoo.backbone),
            "size": zoo.size,
            "held_out": list(zoo.held_out),
            "base_sha256": zoo.base_sha256,
            "base_pretrained_on": zoo.base_pretrained_on(),
            "batchnorm": zoo.batchnorm,
        },
        "entries": len(entries),
        "failures": len(zoo.failures()),
        "entries_by_kind": {k: len(v) for k, v in _grouped(entries, lambda e: e.task.kind).items()},
        "entries_by_plan": {k: len(v) for k, v in _grouped(entries, lambda e: e.task.plan).items()},
        "gain_by_plan": _gains(entries, lambda e: e.task.plan),
        "gain_by_dataset": _gains(entries, lambda e: e.task.scored_on),
        "gain_by_domain": _gains(entries, lambda e: e.task.look),
        "delta_norm_by_plan": {
            plan: sum(norms[e.id] for e in some) / len(some)
            for plan, some in _grouped(entries, lambda e: e.task.plan).items()
        },
        "hours": hours,  # of one worker, over all entries
        "entries_per_hour": len(entries) / hours if hours else None,
        "bytes": sum(size or 0 for size in zoo.table()["bytes"].to_pylist()),
        "licences": _licences(entries),
    }


def delta_norms(zoo: Zoo, entries: Iterable[ZooEntry]) -> dict[str, float]:
    """Euclidean norm of each entry's delta at full strength, in percent of that of the base's parameters."""
    base = zoo.base()
    whole = math.sqrt(sum(base[n].double().square().sum().item() for n in zoo.shapes))
    return {
        e.id: 100 * math.sqrt(sum(v.double().square().sum().item() for v in e.delta().values())) / whole
        for e in entries
    }


def _grouped(entries: Sequence[ZooEntry], key: Callable[[ZooEntry], str]) -> dict[str, list[ZooEntry]]:
    groups: defaultdict[str, list[ZooEntry]] = defaultdict(list)
    for entry in entries:
        groups[key(entry)].append(entry)
    return dict(sorted(groups.items()))


def _gains(entries: Sequence[ZooEntry], key: Callable[[ZooEntry], str]) -> dict[str, dict[str, float]]:
    found = {name: [e.metrics["gain"] for e in some] for name, some in _grouped(entries, key).items()}
    return {
        name: {"mean": sum(gains) / len(gains), "min": min(gains), "max": max(gains), "entries": len(gains)}
        for name, gains in found.items()
    }


def _licences(entries: Sequence[ZooEntry]) -> dict[str, list[str]]:
    """The datasets that entries were made of, by licence."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for name, source in entry.about.get("sources", {}).items():
            found[source["licence"]].add(name)
    return {licence: sorted(names) for licence, names in sorted(found.items())}
