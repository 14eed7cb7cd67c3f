"""d2nwg-init zoo: check, merge, export and look at what was built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.options import OutJson
from d2nwg_init.cli.outputs import out_file
from d2nwg_init.cli.zoo_tables import gains_table, pairs_table, scores_table, sources_table, tensors_table

ZooPath = Annotated[str, typer.Argument(help="Folder or fsspec URL of the zoo.")]


def verify(
    zoo: ZooPath,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the zoo's datasets; without it files alone are checked.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Entries to score again on the data, spread over plans.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the choice of these entries.")] = 0,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Points of accuracy that a score may be off. Allow 1 on another machine than built."),
    ] = 0.2,
) -> None:
    """Check every file of a zoo, and a sample of its scores. Exit code 1 where there is a problem."""
    from rich.console import Console

    from zoo_builder.errors import ZooError
    from zoo_builder.store import Zoo
    from zoo_builder.verify import verify as verify_zoo

    report = verify_zoo(Zoo.open(zoo), data, sample, seed, tolerance)
    if report.re_evaluated:
        Console().print(scores_table(report.re_evaluated))
    if report.orphans:
        typer.echo(f"{len(report.orphans)} files have no row, as a kill leaves them. The next build overwrites them:")
        typer.echo("\n".join(f"  {name}" for name in report.orphans))
    for problem in report.problems:
        typer.echo(f"- {problem}")
    if report.problems:
        raise ZooError(
            f"{len(report.problems)} problems in {report.checked} entries of {zoo}, the first: {report.problems[0]}"
        )
    typer.echo(
        f"{zoo} is sound: {report.checked} entries, {len(report.re_evaluated)} of them scored again; "
        f"{report.failures} failed tasks."
    )


@resumable
def merge(
    into: Annotated[str, typer.Argument(help="Zoo that receives; what it holds is kept.")],
    others: Annotated[list[str], typer.Argument(help="Zoos of the same base, backbone, size and held-out sets.")],
) -> None:
    """Copy into a zoo what others hold and it lacks, byte by byte. Resumable."""
    from zoo_builder.errors import ZooError
    from zoo_builder.merge import merge as merge_zoos
    from zoo_builder.store import Zoo

    report = merge_zoos(Zoo.open(into), [Zoo.open(path) for path in others])
    typer.echo(
        f"{report.copied} entries copied into {into}, {report.kept} were there already; {report.failures} failed tasks "
        "are on record with them."
    )
    if report.conflicts:
        typer.echo(f"{len(report.conflicts)} are there with other bytes, and stay as they were:")
        typer.echo("\n".join(f"  {name}" for name in report.conflicts))
    if report.damaged:
        raise ZooError(
            f"{len(report.damaged)} entries are damaged where they came from and were not copied: "
            f"{', '.join(report.damaged)}. Build them again there: remove their rows, then run the build."
        )


def export(
    zoo: ZooPath,
    out: Annotated[
        Path, typer.Option(callback=out_file, help="Weights (.safetensors) of an entry, or the index (.parquet, .csv).")
    ],
    entry: Annotated[str | None, typer.Option(help="Entry to export; without it the whole index is.")] = None,
) -> None:
    """Write an entry as weights that timm.create_model(MODEL, num_classes=K, checkpoint_path=OUT) loads, or the index
    as one table."""
    from zoo_builder.export import export as export_entry
    from zoo_builder.export import export_table
    from zoo_builder.store import Zoo

    opened = Zoo.open(zoo)
    if entry is None:
        typer.echo(f"{export_table(opened, out)} rows written to {out}.")
        return
    classes = export_entry(opened, entry, out)
    what = f"its head of {classes} classes" if classes else "no head: num_classes=0"
    typer.echo(f"Weights of {opened.model} with {what} written to {out}.")


def show(zoo: ZooPath, entry: Annotated[str, typer.Argument(help="Id of the entry, as `zoo list` prints it.")]) -> None:
    """Print all that is known of one entry: its task, metrics, curve, sources and tensors."""
    from dataclasses import asdict

    from rich.console import Console

    from zoo_builder.errors import ZooError
    from zoo_builder.store import Zoo

    opened = Zoo.open(zoo)
    if error := opened.failures().get(entry):
        raise ZooError(f"{entry} failed; with --retry-failed `zoo build` runs it again. It said:\n{error}")
    found = opened.entry(entry)
    console = Console()
    about = {k: v for k, v in found.about.items() if k != "sources"}
    last = {f"loss at step {step}": loss for step, loss in found.curve[-5:]}
    for title, values in (
        (found.id, asdict(found.task)),
        ("metrics (accuracies in %)", found.metrics | last),
        ("made by", about | {"file": str(found.path), "sha256": found.sha256}),
    ):
        console.print(pairs_table(title, values))
    console.print(sources_table(found))
    console.print(tensors_table(found))


def stats(
    zoo: ZooPath,
    plot: Annotated[
        Path | None, typer.Option(callback=out_file, help="PNG to draw: gains, a map of entries, norms of deltas.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object and no tables.")] = False,
    out: OutJson = None,
) -> None:
    """Print what a zoo's entries gain (points over a solved head on the base), how far they went, what they cost."""
    from rich.console import Console

    from d2nwg_init.benchmarks.results import deliver, header
    from zoo_builder.stats import stats as zoo_stats
    from zoo_builder.stats_plot import draw_stats
    from zoo_builder.store import Zoo

    opened = Zoo.open(zoo)
    found = zoo_stats(opened)
    report = header("zoo_stats") | found
    printed = deliver(report, out, json_)  # first, lest a plot that fails takes it along
    if plot:
        draw_stats(opened, plot)
    if printed:
        return
    console = Console()
    for by in ("plan", "dataset", "domain"):
        console.print(gains_table(by, found))
    speed = f", {found['entries_per_hour']:.0f} an hour of one worker" if found["entries_per_hour"] else ""
    typer.echo(
        f"{found['entries']} entries, {found['failures']} failed tasks; {found['hours']:.2f} hours of work{speed}; "
        f"{found['bytes'] / 2**20:.1f} MiB."
    )
    for licence, names in found["licences"].items():
        typer.echo(f"Licence {licence}: {', '.join(names)}.")
