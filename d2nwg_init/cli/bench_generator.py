"""d2nwg-init bench generator: a bundle against its gates and against plain compression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2nwg_init.cli.outputs import out_file

if TYPE_CHECKING:
    from rich.table import Table

    from d2nwg_init.benchmarks.generator.benchmark import GeneratorRow


def generator(
    zoo: Annotated[str, typer.Option(help="Folder or fsspec URL of the zoo that the bundle was trained on.")],
    bundle: Annotated[str, typer.Option(help="Embedded bundle name, or a bundle's folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the zoo's datasets, for recall_at_1: it needs unseen images.")
    ] = None,
    transfer: Annotated[
        Path | None,
        typer.Option(
            help="Results of bench transfer with this bundle, for the shuffled condition on development sets."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            callback=out_file, help="Results; rows of other bundles stay. The compression curve lies beside it."
        ),
    ] = Path("generator.json"),
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON and no table.")] = False,
) -> None:
    """Every gate of a trained bundle, the memorisation tests, and how much gain is kept at which compression, beside
    truncated SVD and PCA."""
    import json

    from rich.console import Console

    from d2nwg_init.benchmarks.generator.benchmark import merged, run_generator_benchmark
    from d2nwg_init.benchmarks.generator.plot import draw_compression
    from d2nwg_init.benchmarks.results import earlier_results
    from d2nwg_init.benchmarks.transfer.report import write_report
    from pretrained_generators.svg import as_svg
    from pretrained_generators.training.gates import GATES
    from pretrained_generators.training.zoo_data import load_bundle_beside
    from zoo_builder.files import write_text_atomically
    from zoo_builder.store import Zoo

    earlier_results(out, "runs", "rows")  # a damaged file is told of before anything is measured
    opened = Zoo.open(zoo)
    loaded = load_bundle_beside(opened, bundle)
    rows = run_generator_benchmark(loaded, opened, data, transfer)
    report = merged(out, loaded, opened, rows)
    write_report(out, report)
    own = [r for r in report["rows"] if r["bundle"] == loaded.config.name]
    plot = out.with_name(f"{out.stem}-{loaded.config.name}-compression.svg")
    write_text_atomically(plot, as_svg(draw_compression(own, GATES["reconstruction_gain_kept"])) + "\n")
    if json_:
        print(json.dumps(report))
        return
    for table in (_gates(rows), _curve(rows)):
        Console().print(table)
    typer.echo(f"Results: {out}. Compression curve: {plot}")


def _gates(rows: list[GeneratorRow]) -> Table:
    from rich.table import Table

    from pretrained_generators.training.gates import GATES

    table = Table("gate", title=rows[0].bundle)
    for heading in ("wanted", "found", ""):
        table.add_column(heading, justify="right")
    for name, wanted in GATES.items():
        found = next(r.value for r in rows if r.metric == name)
        verdict = "not measured" if found != found else "passed" if found >= wanted else "failed"
        table.add_row(name, f"{wanted:g}", "" if found != found else f"{found:.3g}", verdict)
    return table


def _curve(rows: list[GeneratorRow]) -> Table:
    from rich.table import Table

    table = Table("codec", title="Share of the gain that is kept, on entries that nothing was fitted on")
    for heading in ("compression", "gain kept"):
        table.add_column(heading, justify="right")
    for r in (r for r in rows if r.metric == "gain_kept"):
        table.add_row(r.codec, f"{r.compression:.1f}", f"{r.value:.3f}")
    return table
