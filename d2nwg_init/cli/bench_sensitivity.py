"""d2nwg-init bench sensitivity: what the numbers of a recipe, and the datasets of a zoo, change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.lists import listed
from d2nwg_init.cli.options import DataFolder, JsonRows, OutJson


@resumable
def sensitivity(
    zoo: Annotated[str, typer.Option(help="Folder or fsspec URL of the zoo.")],
    data: DataFolder,
    recipe: Annotated[str, typer.Option(help="Of the generator: name of a shipped recipe, or a TOML file.")],
    zoo_recipe: Annotated[
        str, typer.Option(help="Of smaller zoos: name of a shipped recipe, or a TOML file.")
    ] = "benchmark",
    sizes: Annotated[str, typer.Option(help="Datasets of smaller zoos to build, by commas.")] = "4,8",
    choices: Annotated[str, typer.Option(help="Choices to measure, by commas; empty takes all.")] = "",
    datasets: Annotated[str, typer.Option(help="Datasets, by commas; empty takes the development sets.")] = "",
    plans: Annotated[str, typer.Option(help="Plans of the zoo that no_generator combines, by commas.")] = "branch",
    universal: Annotated[str, typer.Option(help="Plan of the zoo with one delta for all datasets.")] = "universal",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the measurement, counted from 0.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes of one thread each; 0 takes one a core.")] = 0,
    work: Annotated[Path, typer.Option(help="Folder of zoos, generators and what is measured.")] = Path(
        "runs/sensitivity"
    ),
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Train a generator anew with one number of its recipe otherwise, or on a zoo of fewer datasets, and measure it on
    the development sets before any training. Resumable."""
    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks.results import deliver, results
    from d2nwg_init.benchmarks.sensitivity import MeasuredOn, SmallerZoos, run_sensitivity
    from d2nwg_init.benchmarks.sensitivity_page import HEAD, table_rows
    from d2nwg_init.benchmarks.transfer.splits import SPLITS
    from pretrained_generators.training.recipe import GeneratorRecipe
    from zoo_builder.recipe import read_recipe
    from zoo_builder.tasks import ZooRecipe

    smaller = SmallerZoos(read_recipe(zoo_recipe, ZooRecipe, "zoo_builder"), _numbers(sizes))
    parsed = read_recipe(recipe, GeneratorRecipe, "pretrained_generators")
    measured_on = MeasuredOn(listed(datasets) or SPLITS["development"], seeds, listed(plans), universal)
    read, rows, commits = run_sensitivity(zoo, parsed, smaller, measured_on, data, listed(choices), work, workers)
    if deliver(results("sensitivity", read, rows) | {"commits": commits}, out, json_):
        return
    table = Table(HEAD[0], title=f"{rows[0].bundle}: mean over {len(read)} datasets, before any training")
    for heading in HEAD[1:]:
        table.add_column(heading, justify="right")
    for row in table_rows(rows):
        table.add_row(*row)
    Console().print(table)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in listed(text))
    except ValueError:
        raise typer.BadParameter(f"expected numbers by commas, got {text!r}", param_hint="--sizes") from None
