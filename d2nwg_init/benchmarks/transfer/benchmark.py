"""The whole benchmark: what is chosen on the development sets, the cells of one split, and what is made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from d2nwg_init.benchmarks.measurable import check_measurable
from d2nwg_init.benchmarks.results import earlier_results, header
from d2nwg_init.benchmarks.transfer.cells import Cell
from d2nwg_init.benchmarks.transfer.live import LiveTable
from d2nwg_init.benchmarks.transfer.methods import METHODS, Method
from d2nwg_init.benchmarks.transfer.plan import (
    Choices,
    choose_rates,
    choose_strengths,
    chosen_methods,
    plan_cells,
    rate_cells,
    read_choices,
    strength_cells,
    write_choices,
)
from d2nwg_init.benchmarks.transfer.report import Found, check_seeds, compare, merge_report, rows_of, write_report
from d2nwg_init.benchmarks.transfer.run import run_cells
from d2nwg_init.benchmarks.transfer.splits import SPLITS, Split
from d2nwg_init.benchmarks.transfer.subject import PROTOCOL, Subject, SubjectSpec, identity, open_subject, work_folder
from zoo_builder.datasets import ImageDataset, dataset_names, load_dataset
from zoo_builder.errors import DataError, RecipeError, nearest_names
from zoo_builder.executors.processes import process_executor
from zoo_builder.files import write_text_atomically


@dataclass(frozen=True)
class Request:
    subject: SubjectSpec
    split: Split
    data: Path
    methods: tuple[str, ...]  # empty takes all that the subject has what is needed for
    datasets: tuple[str, ...]  # of the split; empty takes all
    shots: tuple[int | None, ...]
    seeds: int
    choose: bool  # learning rates and strengths, on the development sets
    trained: tuple[str, ...] | None = None  # None takes all that can be; of others step 0 alone is measured

    def rows(self) -> dict[str, Method]:
        """The methods to measure, each trained or not.

        Raises:
            RecipeError: unknown, or without the zoo or bundle that it needs.
        """
        found = chosen_methods(self.methods, self.subject.zoo is not None, self.subject.bundle is not None)
        if self.trained is None:
            return found
        trained = chosen_methods(self.trained, True, True) if self.trained else {}
        return {name: replace(m, trained=m.trained and name in trained) for name, m in found.items()}


def run_benchmark(request: Request, work: Path, out: Path, workers: int = 0) -> tuple[Found, dict]:
    """Measure all cells that are not in `work` yet; write `out` and the page beside it.

    Returns:
        The cells of this request, and the object that `out` holds, in which other subjects' rows are kept.

    Raises:
        RecipeError: an unknown method or dataset, nothing to measure, or `out` holds seeds that would be lost.
        ZooError, BundleError: the subject cannot be read. D2NWGError: `out` is damaged.
        DataError: a dataset of the split is not there, or has no test images.
    """
    from d2nwg_init.benchmarks.transfer.page import write_page

    measured_on = _chosen_datasets(request.datasets, request.split)
    methods = request.rows()
    folder = work_folder(request.subject, work)
    loaded = {n: _load(n, request.data) for n in measured_on}

    def planned(choices: Choices) -> list[Cell]:
        return plan_cells(methods, measured_on, request.shots, range(request.seeds), choices)

    choices = Choices()
    if not planned(choices):
        raise RecipeError(
            f"Nothing is measured of {', '.join(methods)} with these --shots: some rows are of 1, 5 or 16 images a "
            "class alone, and some of all. Give other --shots, or other --methods."
        )
    check_seeds(out, identity(request.subject)[0], request.split, planned(choices))
    subject = open_subject(request.subject, folder)
    if request.choose:
        choices = _choose(request, subject, folder, out.with_name("transfer_choices.json"), workers)
    cells = tied(planned(choices), subject, {name: d.sha256 for name, d in loaded.items()})
    about = header("transfer") | {
        "protocol": PROTOCOL,
        "data": [{"name": d.name, "origin": d.origin, "sha256": d.sha256} for d in loaded.values()],
        **(subject.bundle.config.identity if subject.bundle else {"weights_sha256": None}),
    }
    if request.split == "held_out":
        _record(out.with_name("heldout_runs.json"), subject.name, list(methods), request, about)
    found = _measure(f"{subject.name}, {request.split}", request, folder, cells, workers)
    about["commits"] = sorted({measured.commit or "unknown" for measured in found.values()})
    rows = rows_of(found, subject.name, request.split, choices)
    report = merge_report(out, about, rows, compare(found, subject.name, request.split, choices))
    write_report(out, report)
    write_page(report, out.with_suffix(".html"))
    return found, report


def tied(cells: Sequence[Cell], subject: Subject, hashes: Mapping[str, str]) -> list[Cell]:
    """Cells of all that they are measured with: datasets by SHA-256, of which each one's next is the condition of its
    shuffled cells, and the bundle where it has an influence. The only dataset has no shuffled cells."""
    names = list(hashes)
    following = dict(zip(names, names[1:] + names[:1], strict=True))
    found = []
    for cell in cells:
        other = following[cell.dataset] if cell.condition == "shuffled" else None
        if other != cell.dataset:
            data = "-".join(hashes[name][:10] for name in (cell.dataset, other) if name)
            bundle = subject.bundle_digest if METHODS[cell.method].depends_on_bundle else None
            found.append(replace(cell, bundle=bundle, other=other, data=data))
    return found


def _measure(title: str, request: Request, folder: Path, cells: Sequence[Cell], workers: int) -> Found:
    """Run what is missing."""
    with LiveTable(title, folder / "cells", cells) as table:
        executor = process_executor(workers or os.cpu_count() or 1)
        run_cells(cells, request.subject, folder, request.data, executor, table.look)
    return table.found


def _choose(request: Request, subject: Subject, folder: Path, file: Path, workers: int) -> Choices:
    """What `file` says of the subject with this base, zoo and bundle. What it lacks for the methods and shots of the
    request is measured, on a seed of its own, and written there. Strengths come first, and learning rates with these.
    """
    of = "+".join(filter(None, (folder.name, subject.bundle_digest)))
    methods, shots = request.rows(), request.shots
    trained = [name for name, m in methods.items() if m.rated and None in shots]
    written, lacking = read_choices(file, subject.name, of, methods, shots, trained)
    if not lacking:
        return written
    methods = {name: methods[name] for name in lacking}
    trained = [name for name in trained if name in methods]
    datasets = SPLITS["development"]
    hashes = {name: _load(name, request.data).sha256 for name in datasets}

    def measure(title: str, cells: list[Cell]) -> Found:
        return _measure(f"{subject.name}, {title}", request, folder, tied(cells, subject, hashes), workers)

    choices = choose_strengths(measure("choosing strengths", strength_cells(methods, datasets, shots)))
    if trained:
        choices = choose_rates(choices, measure("choosing learning rates", rate_cells(methods, datasets, choices)))
    return write_choices(file, subject.name, of, choices, lacking, shots, trained, header("transfer"))


def _chosen_datasets(names: Sequence[str], split: Split) -> tuple[str, ...]:
    for name in names:
        if name not in SPLITS[split]:
            raise RecipeError(f"{name!r} is not in the split {split!r}; {nearest_names(name, SPLITS[split])}")
    return tuple(names) or SPLITS[split]


def _load(name: str, data: Path) -> ImageDataset:
    if name not in dataset_names(data):
        raise DataError(f"{data} has no dataset {name!r}, which the benchmark measures on. Add it, or name --datasets.")
    dataset = load_dataset(name, data)
    check_measurable(dataset)
    return dataset


def _record(file: Path, subject: str, methods: list[str], request: Request, about: dict) -> None:
    """Every look at the held-out sets is counted, before it is taken."""
    runs = earlier_results(file, "runs")["runs"]
    run = {k: about[k] for k in ("date", "commit", "command", "machine")}
    run |= {"bundle": subject, "methods": methods, "datasets": [d["name"] for d in about["data"]]}
    run |= {"shots": list(request.shots), "seeds": request.seeds}
    text = json.dumps({"schema": 1, "name": "heldout_runs", "runs": [*runs, run]}, indent=1)
    write_text_atomically(file, text + "\n")
