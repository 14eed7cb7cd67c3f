"""Cells -> files, one process a core. What is there is kept; a run that was interrupted goes on with the next cell."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from d2nwg_init.benchmarks.fine_tuning import FineTuning, accuracy, train_steps
from d2nwg_init.benchmarks.transfer.arena import Arena
from d2nwg_init.benchmarks.transfer.cells import Cell, Measured, curve_images, missing, write_cell
from d2nwg_init.benchmarks.transfer.methods import make
from d2nwg_init.benchmarks.transfer.splits import measured_on
from d2nwg_init.benchmarks.transfer.subject import Subject, SubjectSpec, open_subject
from zoo_builder.backbones import predict
from zoo_builder.datasets import load_dataset
from zoo_builder.errors import D2NWGError
from zoo_builder.executors.processes import telling_of_dead_workers
from zoo_builder.small_maps import SmallMaps

STEPS = (10, 30, 100)
EVERY = 5  # steps between two points of a curve
LONG_EPOCHS = 10
LONG_IMAGES = 2000  # train images, at most, of the long run
POLL = 1.0  # seconds between two looks at what is done


def run_cell(arena: Arena, cell: Cell) -> Measured:
    """Make the method's model, measure it at step 0, and train it:

    none   not at all
    rates  to step 100 and, anew from the start, through one epoch, measured at 30, 100 and the epoch: to choose a
           learning rate by
    short  the same, measured at all of STEPS and, on CURVE_IMAGES, at every fifth step
    long   the same, and anew from the start for ten epochs of LONG_IMAGES

    Each is a cycle of its own: what is read in the midst of one has a rate that has yet to come down, and a head that
    is yet to be learnt suffers most by it.
    """
    made = make(arena, cell)
    images, labels = arena.test
    measured = Measured({}, [], {"initialise": made.seconds}, made.notes)

    def measure(model: nn.Module, at: str) -> None:
        measured.correct[at] = (predict(model, images).argmax(1) == labels).numpy()

    measure(made.model, "step/0")
    if cell.training == "none":
        return measured
    begun = copy.deepcopy(made.model)
    recipe = FineTuning(learning_rate=cell.learning_rate or FineTuning.learning_rate)
    torch.manual_seed(cell.seed)
    drawn = curve_images(len(labels))
    curve_of = images[drawn], labels[drawn]
    curve = [] if cell.training == "rates" else [(0, 0.0, accuracy(made.model, *curve_of))]
    for step, seconds in train_steps(made.model, arena.training_loader(), recipe, STEPS[-1]):
        if step in STEPS and not (cell.training == "rates" and step == STEPS[0]):
            measure(made.model, f"step/{step}")
            measured.seconds[f"step/{step}"] = seconds
        if cell.training != "rates" and step % EVERY == 0:
            curve.append((step, seconds, accuracy(made.model, *curve_of)))
    measured.curve.extend(curve)
    for epochs, most in ((1, None), (LONG_EPOCHS, LONG_IMAGES)) if cell.training == "long" else ((1, None),):
        model, loader = copy.deepcopy(begun), arena.training_loader(most)
        torch.manual_seed(cell.seed)
        for _, seconds in train_steps(model, loader, recipe, epochs * len(loader)):
            measured.seconds[f"epoch/{epochs}"] = seconds
        measure(model, f"epoch/{epochs}")
    return measured


@dataclass(frozen=True)
class Group:
    """Cells of one arena: a worker reads its images once."""

    subject: SubjectSpec
    folder: Path  # of the subject's work
    data: Path
    cells: tuple[Cell, ...]

    def __call__(self) -> None:
        subject = _subject(self.subject, self.folder)
        first, other = self.cells[0], next((c.other for c in self.cells if c.other), None)

        def arena_of(name: str, other: Arena | None = None) -> Arena:
            dataset = load_dataset(name, self.data, size=subject.size, max_images=None)
            return Arena(subject, measured_on(dataset, first.seed), first.seed, first.shots, other)

        arena = arena_of(first.dataset, arena_of(other) if other else None)
        for cell in self.cells:
            with SmallMaps():  # every row's training, that of equal time too
                measured = run_cell(arena, cell)
            if any(not np.isfinite(v) for _, _, v in measured.curve):
                raise D2NWGError(f"{cell.id}: an accuracy is not finite.")
            write_cell(self.folder / "cells", cell, measured)


@functools.lru_cache(maxsize=1)
def _subject(spec: SubjectSpec, folder: Path) -> Subject:
    return open_subject(spec, folder)


def run_cells(
    cells: Sequence[Cell],
    spec: SubjectSpec,
    folder: Path,
    data: Path,
    executor: Executor,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Measure the cells that have no file yet; `look` is called about every second, and at the end.

    Raises:
        D2NWGError: a worker died.
    """
    todo = missing(folder / "cells", cells)
    groups: dict[tuple[str, int | None, int], list[Cell]] = {}
    for cell in todo:
        groups.setdefault((cell.dataset, cell.shots, cell.seed), []).append(cell)
    # The largest first, so that no core is idle at the end.
    ordered = sorted(groups.values(), key=lambda g: (-sum(_weight(c) for c in g), g[0].id))
    try:
        with telling_of_dead_workers():
            running = {executor.submit(Group(spec, folder, data, tuple(g))) for g in ordered}
            while running:
                done, running = wait(running, timeout=POLL)
                look()
                for future in done:
                    future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    look()


def _weight(cell: Cell) -> float:
    """How long a cell takes, roughly, in units of a short one."""
    return {"none": 0.2, "rates": 0.6, "short": 1.0, "long": 3.0}[cell.training] + 10 * (cell.method == "oracle")


def total_weight(cells: Iterable[Cell]) -> float:
    return math.fsum(map(_weight, cells))
