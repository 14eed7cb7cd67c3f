"""What a run has come to so far: a table of step-0 accuracies that fills up, over a bar with an estimate."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from d2nwg_init.benchmarks.transfer.cells import Cell, Measured, missing, read_cell
from d2nwg_init.benchmarks.transfer.run import total_weight

QUIET = 30.0  # seconds between two lines where there is no terminal


class LiveTable:
    """A context; `look()` reads what is new. `found` holds all cells that are there."""

    def __init__(self, title: str, folder: Path, cells: Sequence[Cell]) -> None:
        self.title, self.folder, self.cells = title, folder, cells
        self.found: dict[Cell, Measured] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task(title, total=total_weight(cells))
        console = Console(stderr=True)
        self._live = Live(get_renderable=self._view, console=console, refresh_per_second=1, transient=True)
        self._terminal = console.is_terminal
        self._spoke = time.monotonic()
        self.look()

    def __enter__(self) -> LiveTable:
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        if self._terminal:
            self._live.stop()

    def look(self) -> None:
        new = [c for c in self.cells if c not in self.found]
        absent = set(missing(self.folder, new))
        there = self.found | {c: read_cell(self.folder, c) for c in new if c not in absent}
        self.found = {c: there[c] for c in self.cells if c in there}  # as they are planned, whichever came first
        done = f"{self.title}: {len(self.found)}/{len(self.cells)} cells -> {self.folder}"
        self._progress.update(self._task, completed=total_weight(self.found), description=done)
        if not self._terminal and new and time.monotonic() - self._spoke > QUIET:
            self._spoke = time.monotonic()
            print(done, file=sys.stderr, flush=True)

    def _view(self) -> Group:
        return Group(accuracy_table(self.found, "step/0"), self._progress)


def accuracy_table(found: Mapping[Cell, Measured], at: str, shots: int | None = None) -> Table:
    """Test accuracy (%) by method and dataset, mean over seeds, at one point of the training, with the right
    condition; of several variants of a method the best in the mean."""
    values: dict[tuple[str, float | None], dict[str, list[float]]] = {}
    for cell, measured in found.items():
        if cell.shots == shots and cell.condition == "right" and at in measured.correct:
            row = values.setdefault((cell.method, cell.sigma), {})
            row.setdefault(cell.dataset, []).append(measured.accuracy(at))
    datasets = list(dict.fromkeys(name for row in values.values() for name in row))
    table = Table("method", title=f"test accuracy (%) at {at}, {'all' if shots is None else shots} images a class")
    for name in (*datasets, "mean"):
        table.add_column(name, justify="right", overflow="fold")
    for (method, sigma), row in values.items():
        means = {name: mean(v) for name, v in row.items()}
        figures = [f"{means[name]:.1f}" if name in means else "" for name in datasets]
        whole = f"{mean(means.values()):.1f}" if len(means) == len(datasets) else ""
        table.add_row(method if sigma is None else f"{method} {sigma:g}", *figures, whole)
    return table
