"""Pieces of a measurement, each kept in a file, whole or not there: a run goes on where it was interrupted."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from d2nwg_init.benchmarks.results import read_results, source_commit
from zoo_builder.executors.processes import telling_of_dead_workers
from zoo_builder.files import write_text_atomically
from zoo_builder.progress import progress_bar

Piece = TypeVar("Piece")  # a dataclass whose `id` tells all that it is measured with


def measure_missing(
    todo: Sequence[Piece], measure: Callable[[Piece], Mapping[str, Any]], folder: Path, executor: Executor
) -> None:
    """Measure the pieces that are not kept in `folder` yet; `executor` is shut down.

    Raises:
        D2NWGError: a worker died.
    """
    missing = [piece for piece in todo if not _file(folder, piece).exists()]
    with telling_of_dead_workers(), executor, progress_bar(f"-> {folder}", total=len(missing)) as bar:
        for _ in executor.map(functools.partial(_measure, measure, folder), missing):
            bar.advance()


def _measure(measure: Callable[[Piece], Mapping[str, Any]], folder: Path, piece: Piece) -> None:
    kept = {"piece": asdict(piece), "found": measure(piece), "commit": source_commit()}  # type: ignore[call-overload]
    write_text_atomically(_file(folder, piece), json.dumps(kept) + "\n")


def kept(folder: Path, piece: object) -> dict[str, Any] | None:
    """What a piece came to; None: it is not measured.

    Raises:
        D2NWGError: its file is damaged.
    """
    file = _file(folder, piece)
    return _read(file)["found"] if file.exists() else None


def commits(folder: Path, pieces: Sequence[object]) -> list[str]:
    """Of the code that measured what is kept: a run that goes on may do so with another."""
    files = [file for piece in pieces if (file := _file(folder, piece)).exists()]
    return sorted({_read(file).get("commit") or "unknown" for file in files})


def _read(file: Path) -> dict[str, Any]:
    return read_results(file, {"found": dict}, "Remove it: it is measured anew.")


def _file(folder: Path, piece: object) -> Path:
    return folder / f"{piece.id}.json"  # type: ignore[attr-defined]
