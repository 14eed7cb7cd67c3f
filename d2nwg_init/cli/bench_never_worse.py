"""d2nwg-init bench never-worse: how often initialize() chooses worse than the best simple choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.lists import listed
from d2nwg_init.cli.options import DataFolder, OutJson


@resumable
def never_worse(
    data: DataFolder,
    datasets: Annotated[str, typer.Option(help="Datasets, by commas; empty takes the development split.")] = "",
    bundles: Annotated[str, typer.Option(help="Bundles, by commas; empty takes the embedded ones with a base.")] = "",
    draws: Annotated[int, typer.Option(min=1, help="Of dataset, model, shots and seed.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    work: Annotated[Path, typer.Option(help="Folder of the finished draws.")] = Path("runs/never_worse"),
    json_: Annotated[bool, typer.Option("--json", help="Print rows as JSON and no summary.")] = False,
    out: OutJson = None,
) -> None:
    """The share of random draws in which what is chosen is more than a point of test accuracy below the best of: the
    model as passed, its own body and the bundle's base with solved heads; before training and after an epoch, on at
    most 2,000 images. Resumable: finished draws are kept."""
    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks import never_worse as study
    from d2nwg_init.benchmarks.kept import commits
    from d2nwg_init.benchmarks.measurable import check_measurable
    from d2nwg_init.benchmarks.results import deliver, results
    from d2nwg_init.benchmarks.transfer.splits import SPLITS
    from pretrained_generators.bundle import embedded_bundles, load_config
    from zoo_builder.datasets import load_dataset
    from zoo_builder.executors.processes import process_executor

    names = listed(datasets) or SPLITS["development"]
    loaded = [load_dataset(name, data) for name in names]
    configs = {name: load_config(name) for name in listed(bundles) or embedded_bundles(whole=True)}
    for dataset in loaded:
        check_measurable(dataset, configs.values())
    weights = {name: config.weights_sha256 for name, config in configs.items()}
    hashes = {name: d.sha256 for name, d in zip(names, loaded, strict=True)}
    todo = list(study.draws(draws, hashes, weights))
    study.run_draws(todo, data, work, process_executor(workers))
    rows = study.rows_of(todo, work)
    report = results("never_worse", loaded, rows) | {"commits": commits(work, todo)}
    if not deliver(report, out, json_):
        metrics = ("over_best", "worse_share", "clearly_worse_share")
        found = {(r.method, r.epoch, r.condition, r.metric): r.value for r in rows if r.dataset == "all"}
        for at, epoch in (("before training", None), ("after an epoch", 1)):
            table = Table("images", title=f"{at}, beside the best simple choice in hindsight")
            for method in study.JUDGED:
                table.add_column(f"{method}: over it, points", justify="right")
                table.add_column(f"worse by over {study.MARGIN:g}, %", justify="right")
                table.add_column("beyond chance, %", justify="right")
            for which in dict.fromkeys(condition for _, _, condition, _ in found):
                cells = ((m, metric) for m in study.JUDGED for metric in metrics)
                table.add_row(which, *(f"{found[m, epoch, which, metric]:.1f}" for m, metric in cells))
            Console().print(table)
