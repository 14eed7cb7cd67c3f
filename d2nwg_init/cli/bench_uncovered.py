"""d2nwg-init bench uncovered: what initialize() is worth to a model that no bundle covers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.lists import listed
from d2nwg_init.cli.options import DataFolder, JsonRows, OutJson


@resumable
def uncovered(
    model: Annotated[str, typer.Argument(help="timm's name, or torchvision:NAME.")],
    weights: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Pretrained weights of it (safetensors).")],
    data: DataFolder,
    size: Annotated[int, typer.Option(min=32, help="Side of the images, in pixels.")] = 64,
    datasets: Annotated[str, typer.Option(help="Datasets, by commas; empty takes the development split.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Of images, initial head and order of training.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    work: Annotated[Path, typer.Option(help="Folder of what is finished.")] = Path("runs/uncovered"),
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Test accuracy of a pretrained model at steps 0, 10, 30 and 100 of fine-tuning: with a fresh head, with a solved
    head, and from initialize() without a bundle; each at the best of three learning rates. Resumable."""
    from statistics import mean

    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks import uncovered as study
    from d2nwg_init.benchmarks.kept import commits
    from d2nwg_init.benchmarks.measurable import check_measurable
    from d2nwg_init.benchmarks.results import deliver, results
    from d2nwg_init.benchmarks.transfer.splits import SPLITS
    from zoo_builder.datasets import load_dataset
    from zoo_builder.executors.processes import process_executor

    names = listed(datasets) or SPLITS["development"]
    loaded = [load_dataset(name, data) for name in names]
    for dataset in loaded:
        check_measurable(dataset)
    hashes = {name: d.sha256 for name, d in zip(names, loaded, strict=True)}
    cells = study.cells(model, weights, size, hashes, seeds)
    study.run_cells(cells, data, work, process_executor(workers))
    rows = study.rows_of(cells, work)
    report = results("uncovered", loaded, rows) | {"commits": commits(work, cells)}
    if not deliver(report, out, json_):
        steps = sorted({r.step for r in rows if r.step is not None})
        table = Table(
            "", *(f"step {s}" for s in steps), title=f"{model}, test accuracy (%), mean over {len(names)} sets"
        )
        for method in study.METHODS:
            of_method = [r for r in rows if r.method == method]
            table.add_row(method, *(f"{mean(r.value for r in of_method if r.step == s):.1f}" for s in steps))
        Console().print(table)
