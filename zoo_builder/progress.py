"""A progress bar with an estimate and a short note, on stderr; plain log lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """Handed to the work: `advance()` after each unit, `note(text)` for the newest figure."""

    def __init__(self, progress: Progress, title: str, total: int, done: int) -> None:
        self._progress, self._title, self._total, self._done = progress, title, total, done
        self._task = progress.add_task(title, total=total, completed=done, note="")
        self._quiet_until = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)
        console = self._progress.console
        if not (console.is_terminal or console.quiet) and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + 5
            print(f"{self._title}: {self._done}/{self._total} {text}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(title: str, total: int, done: int = 0, show: bool = True) -> Iterator[Bar]:
    """Show `done` of `total` units of work with elapsed and remaining time."""
    console = Console(stderr=True, quiet=not show)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as progress:
        yield Bar(progress, title, total, done)
