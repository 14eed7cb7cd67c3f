"""Is a zoo what it says it is? Every file is hashed and looked into; a sample is scored again on the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of

from zoo_builder.datasets import dataset_names
from zoo_builder.datasets.same_dataset import is_among
from zoo_builder.errors import D2NWGError, ZooError
from zoo_builder.progress import progress_bar
from zoo_builder.rescore import TOLERANCE, Rescored, rescore, spread_over_plans
from zoo_builder.rows import read_rows
from zoo_builder.sources import read_sources
from zoo_builder.store import Zoo, ZooEntry


@dataclass(frozen=True)
class VerifyReport:
    problems: tuple[str, ...]
    orphans: tuple[str, ...]  # entry files without a row: of a kill between the two writes; a build overwrites them
    checked: int  # entries, the damaged ones among them
    failures: int  # rows that say why a task failed; these have no file
    re_evaluated: tuple[Rescored, ...]


def verify(
    zoo: Zoo, data_dir: str | Path | None = None, sample: int = 8, seed: int = 0, tolerance: float = TOLERANCE
) -> VerifyReport:
    """Check all files of a zoo and, where `data_dir` is given, score `sample` sound entries again, spread over plans.

    `tolerance` is in points of accuracy. A problem does not end the check: all that there are are in the report.

    Raises:
        DataError: `data_dir` is no folder.
    """
    if data_dir is not None:
        dataset_names(data_dir)  # once and now, in place of a problem for each entry
    problems = _base_problems(zoo)
    base_is_sound = not problems
    try:
        read_sources(zoo.path)
    except ZooError as e:
        problems.append(str(e))
    sound, damaged, failures = [], 0, 0
    rows = sorted((zoo.path / "rows").glob("*.parquet"))
    with progress_bar(f"checking {zoo.path}", total=len(rows)) as bar:
        for row in rows:
            try:
                entry = _entry(zoo, row)
                if entry is None:
                    failures += 1
                else:
                    _check_file(entry, zoo.shapes)
                    sound.append(entry)
            except ZooError as e:
                problems.append(str(e))
                damaged += 1
            bar.advance()
    orphans = {f.stem for f in (zoo.path / "entries").glob("*.safetensors")} - {r.stem for r in rows}
    measured: list[Rescored] = []
    if data_dir is not None and base_is_sound:
        measured, wrong = rescore(zoo, spread_over_plans(sound, sample, seed), data_dir, tolerance)
        problems += wrong
    return VerifyReport(tuple(problems), tuple(sorted(orphans)), len(sound) + damaged, failures, tuple(measured))


def _base_problems(zoo: Zoo) -> list[str]:
    path = zoo.path / "base.safetensors"
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != zoo.base_sha256:
            return [f"{path} is not the base whose SHA-256 zoo.json has. All entries refer to that: put it back."]
        zoo.body()
    except (OSError, SafetensorError, D2NWGError) as e:
        return [f"{path} cannot be used ({e}). All entries refer to it: put it back."]
    return []


def _entry(zoo: Zoo, row: Path) -> ZooEntry | None:
    """The entry that a row speaks of; None where that is a failure.

    Raises:
        ZooError: the row is damaged or of another task, or its file is gone.
    """
    found = read_rows([row]).to_pylist()
    if [r["id"] for r in found] != [row.stem]:
        raise ZooError(f"{row} holds {[r['id'] for r in found]}, expected itself alone. Remove it and build again.")
    if found[0]["error"] is not None:
        if zoo.entry_path(row.stem).exists():
            raise ZooError(f"{row.stem} failed, and has a file all the same. Remove its row and build again.")
        return None
    if not zoo.entry_path(row.stem).exists():
        raise ZooError(f"{row.stem}: its file is gone. Build again, and it is made anew.")
    try:
        entry = zoo.entry(row.stem)
    except (D2NWGError, KeyError, TypeError, ValueError) as e:
        raise ZooError(f"{row} does not describe an entry ({e!r}). Remove it and build again.") from e
    if entry.task.id != entry.id:
        raise ZooError(f"{entry.id}: the task of its row is another, {entry.task.id}. Remove the row and build again.")
    return entry


def _check_file(entry: ZooEntry, shapes: Mapping[str, torch.Size]) -> None:
    """`shapes` are those of the body's parameters.

    Raises:
        ZooError: naming all that is wrong with an entry.
    """
    contents = entry.path.read_bytes()
    if hashlib.sha256(contents).hexdigest() != entry.sha256:
        raise ZooError(f"{entry.id}: the SHA-256 of its file is not that of its row. Remove it and build again.")
    try:
        tensors = tensors_of(contents)
    except SafetensorError as e:
        raise ZooError(f"{entry.id}: its file is no safetensors file ({e}). Remove it and build again.") from e
    wrong = [f"{k} is not finite" for k, v in tensors.items() if not torch.isfinite(v).all()]
    trained = {k.partition("/")[2]: v.shape for k, v in tensors.items() if k.startswith(("delta/", "weights/"))}
    for name, shape in trained.items():
        if shape != shapes.get(name):
            wanted = f"{list(shapes[name])} in the base" if name in shapes else "not in the base"
            wrong.append(f"{name} is {list(shape)}, and {wanted}")
    lacking = {"support", "support_labels", "embedding"} - tensors.keys()
    if entry.task.scope == "all":
        lacking |= shapes.keys() - trained.keys()
    wrong += [f"{name} is missing" for name in sorted(lacking)]
    seen = sorted({*entry.task.datasets, *entry.task.related})
    wrong += [f"it was trained on {n}, which the zoo holds out" for n in seen if is_among(n, entry.zoo.held_out)]
    if wrong:
        raise ZooError(f"{entry.id}: {'; '.join(wrong)}. Remove its row and build again.")
