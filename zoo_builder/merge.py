"""Zoos that were built apart, on the same base and split, become one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoo_builder.errors import ZooError
from zoo_builder.files import write_bytes
from zoo_builder.progress import progress_bar
from zoo_builder.sources import SourceRecord, read_sources, write_sources
from zoo_builder.store import Zoo


@dataclass(frozen=True)
class MergeReport:
    copied: int  # entries
    kept: int  # entries that were there already, with the same bytes
    failures: int  # rows of failed tasks that were copied
    conflicts: tuple[str, ...]  # ids that are there with other bytes; those that were there stay
    damaged: tuple[str, ...]  # entries of the others whose file is gone or not that of its row; not copied


def merge(into: Zoo, others: Sequence[Zoo]) -> MergeReport:
    """Copy what `others` hold and `into` lacks, byte by byte. Stopped, it goes on when it is called again.

    Raises:
        ZooError: another base, fit of its BatchNorm, backbone, size, split or dataset; then nothing is copied. An id
            that is no file name.
    """
    for other in others:
        _check_alike(into, other)
    datasets = _merged_datasets(into, others)
    if datasets:
        write_sources(into.path, datasets)
    there = {row["id"]: row["sha256"] for row in into.table().to_pylist()}  # None of a failure
    copied = kept = failures = 0
    conflicts, damaged = [], []
    for other in others:
        rows = other.table().to_pylist()
        with progress_bar(f"merging {other.path}", total=len(rows)) as bar:
            for row in rows:
                task_id, sha256 = row["id"], row["sha256"]
                if row["error"] is not None:
                    if task_id not in there:
                        write_bytes(into.row_path(task_id), other.row_path(task_id).read_bytes())
                        there[task_id] = None
                        failures += 1
                elif task_id in into and there.get(task_id) is not None:
                    if there[task_id] == sha256:
                        kept += 1
                    else:
                        conflicts.append(task_id)
                elif _copy(into, other, task_id, sha256):
                    there[task_id] = sha256
                    copied += 1
                else:
                    damaged.append(task_id)
                bar.advance()
    return MergeReport(copied, kept, failures, tuple(conflicts), tuple(damaged))


def _copy(into: Zoo, other: Zoo, task_id: str, sha256: str) -> bool:
    """False where the entry is damaged."""
    if task_id not in other:
        return False
    contents = other.entry_path(task_id).read_bytes()
    if hashlib.sha256(contents).hexdigest() != sha256:
        return False
    into.row_path(task_id).unlink(missing_ok=True)  # an old row must not meet the new file, were we stopped between
    write_bytes(into.entry_path(task_id), contents)
    write_bytes(into.row_path(task_id), other.row_path(task_id).read_bytes())
    return True


def _check_alike(into: Zoo, other: Zoo) -> None:
    for name in ("backbone", "size", "base_sha256", "batchnorm"):
        ours, theirs = getattr(into, name), getattr(other, name)
        if ours != theirs:
            raise ZooError(
                f"{other.path} cannot be merged into {into.path}: its {name} is {theirs}, expected {ours}. Entries are "
                "differences from one base; build both on the same."
            )
    if set(into.held_out) != set(other.held_out):
        raise ZooError(
            f"{other.path} cannot be merged into {into.path}: it holds out {sorted(other.held_out)}, expected "
            f"{sorted(into.held_out)}. An entry trained on what the other zoo holds out would leak."
        )


def _merged_datasets(into: Zoo, others: Sequence[Zoo]) -> dict[str, SourceRecord]:
    """What the zoos know of their datasets. Clusters are numbered in each zoo for itself: those of datasets that only
    another zoo has get numbers of their own.

    Raises:
        ZooError: a dataset differs, or what a zoo knows of them is damaged.
    """
    merged = read_sources(into.path)
    for other in others:
        free = 1 + max((about.cluster for about in merged.values()), default=-1)
        for name, about in read_sources(other.path).items():
            before = merged.setdefault(name, replace(about, cluster=free + about.cluster))
            if before.sha256 != about.sha256:
                raise ZooError(
                    f"{other.path} cannot be merged into {into.path}: its dataset {name!r} has the SHA-256 "
                    f"{about.sha256}, expected {before.sha256}. Build both on the same data."
                )
    return merged
