"""d2nwg-init bench transfer: the benchmark on datasets that no zoo has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.lists import listed
from d2nwg_init.cli.options import DataFolder
from d2nwg_init.cli.outputs import out_file


@resumable
def transfer(
    data: DataFolder,
    split: Annotated[
        Literal["development", "held_out", "in_distribution"],
        typer.Option(help="Datasets to measure on; in_distribution: the zoo's own, half of their classes."),
    ] = "development",
    zoo: Annotated[str | None, typer.Option(help="Zoo of the base to measure: a folder or fsspec URL.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Embedded bundle name, or a bundle's folder.")] = None,
    methods: Annotated[str, typer.Option(help="Rows to measure, by commas; empty takes all that can be.")] = "",
    datasets: Annotated[str, typer.Option(help="Datasets of the split, by commas; empty takes all.")] = "",
    shots: Annotated[str, typer.Option(help="Train images of each class, by commas.")] = "1,5,16,all",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, counted from 0.")] = 3,
    plans: Annotated[str, typer.Option(help="Plans of the zoo that rivals combine, by commas.")] = "branch",
    universal: Annotated[str, typer.Option(help="Plan of the zoo with one delta for all datasets.")] = "universal",
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Choose no learning rates and strengths first: a quick look.")
    ] = False,
    trained: Annotated[
        str, typer.Option(help="Rows to measure along a training too, by commas; empty takes all, 'none' none.")
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes of one thread each; 0 takes one a core.")] = 0,
    work: Annotated[Path, typer.Option(help="Folder of the finished cells.")] = Path("runs/transfer"),
    out: Annotated[
        Path,
        typer.Option(
            callback=out_file, help="Results; what is chosen, the page and the record of held-out runs lie beside it."
        ),
    ] = Path("transfer.json"),
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON and no table.")] = False,
) -> None:
    """Test accuracy from step 0 to epoch 10 of every way to start, on datasets that no zoo has seen.

    Learning rates and strengths are chosen first, on the development sets. Resumable: finished cells are kept.
    """
    from rich.console import Console

    from d2nwg_init.benchmarks.transfer.benchmark import Request, run_benchmark
    from d2nwg_init.benchmarks.transfer.live import accuracy_table
    from d2nwg_init.benchmarks.transfer.subject import SubjectSpec

    spec = SubjectSpec(zoo, bundle, listed(plans), universal)
    along = () if trained == "none" else listed(trained) or None
    request = Request(spec, split, data, listed(methods), listed(datasets), _shots(shots), seeds, not defaults, along)
    found, report = run_benchmark(request, work, out, workers)
    if json_:
        import json

        print(json.dumps(report))
        return
    console = Console()
    for count in request.shots:
        console.print(accuracy_table(found, "step/0", count))
    for at in ("step/30", "epoch/1", "epoch/10") if None in request.shots and along != () else ():
        console.print(accuracy_table(found, at))
    typer.echo(f"Results: {out}. Page: {out.with_suffix('.html')}")


def _shots(text: str) -> tuple[int | None, ...]:
    try:
        shots = tuple(None if name == "all" else int(name) for name in listed(text))
    except ValueError:
        shots = ()
    if not shots or any(count is not None and count < 1 for count in shots):
        raise typer.BadParameter(f"expected numbers of images, or 'all', by commas; got {text!r}", param_hint="--shots")
    return shots
