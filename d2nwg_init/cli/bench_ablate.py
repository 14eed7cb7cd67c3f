"""d2nwg-init bench ablate: what each part of a bundle's way is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.lists import listed
from d2nwg_init.cli.options import JsonRows, OutJson


@resumable
def ablate(
    bundle: Annotated[str, typer.Option(help="Embedded bundle name, or a bundle's folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of datasets: .npz files or folders of class folders.")
    ] = None,
    datasets: Annotated[str, typer.Option(help="Datasets, by commas; empty takes the development sets.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, counted from 0.")] = 1,
    work: Annotated[Path, typer.Option(help="Folder of what is measured already, by commit.")] = Path("runs/ablate"),
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Test accuracy at step 0 of initialize(), and of one unselected sample, with one choice made otherwise."""
    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks.ablation import AS_IT_IS, CHOICES, mean_of, run_ablation
    from d2nwg_init.benchmarks.results import deliver, results
    from d2nwg_init.benchmarks.transfer.splits import SPLITS

    names = listed(datasets) or SPLITS["development"]
    read, rows = run_ablation(bundle, names, data, seeds, work)
    if deliver(results("ablate", read, rows), out, json_):
        return
    for of, choices in CHOICES.items():
        table = Table("choice", title=f"{rows[0].bundle}: {of}, mean over {len(read)} datasets")
        for heading in ("test accuracy (%)", "more than as it is", "seconds"):
            table.add_column(heading, justify="right")
        whole = mean_of(rows, of, AS_IT_IS, "test_accuracy")
        for choice in choices:
            reached, took = (mean_of(rows, of, choice, metric) for metric in ("test_accuracy", "seconds"))
            apart = "" if choice == AS_IT_IS else f"{reached - whole:+.1f}"
            table.add_row(choice, f"{reached:.1f}", apart, f"{took:.1f}")
        Console().print(table)
