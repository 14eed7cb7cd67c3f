"""d2nwg-init bench torch-versions: what is generated under another version of torch."""

from __future__ import annotations

from typing import Annotated

import typer

from d2nwg_init.cli.options import JsonRows, OutJson


def torch_versions(
    other: Annotated[str, typer.Option(help="Version of torch to compare with the installed one.")] = "2.6.0",
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Compare what the embedded bundles with a base generate for a seed: in two processes, and by another torch.

    That version is installed by pip into an environment of its own, which takes about 5 GB of the temporary folder and
    is removed. Runs from a source checkout. Exit code 1 if processes differ in a bit, or versions by more than 1e-4.
    """
    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks.results import deliver, results
    from d2nwg_init.benchmarks.torch_versions import TOLERANCE, compare_versions

    rows = compare_versions(other)
    if not deliver(results("torch_versions", [], rows), out, json_):
        table = Table("bundle", "under", "what", "value")
        for row in rows:
            table.add_row(row.bundle, row.method, row.metric, f"{row.value:.2g}")
        Console().print(table)
    if not all(r.value <= (TOLERANCE if r.metric == "relative_difference" else 0) for r in rows):
        raise typer.Exit(1)
