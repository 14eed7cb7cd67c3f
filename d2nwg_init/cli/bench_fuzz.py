"""d2nwg-init bench fuzz: what loading does with bundles that were damaged at random."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.options import JsonRows, OutJson


def fuzz(
    inputs: Annotated[int, typer.Option(min=25, help="Damaged bundles to load, in all.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the first input; the others follow.")] = 0,
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Load bundles whose JSON, header, tensors or files are damaged, most of them with their hashes recomputed.

    Each must be refused by a BundleError, or give a generator that works: no crash, no load over a second, no memory
    over twice the files' size. A 25th of the inputs are damaged copies of the embedded bundles with a base; the
    others are of a tiny generator, half of them without its base. Exit code 1 if any did otherwise.
    """
    from tempfile import TemporaryDirectory

    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks.fuzz import BASE_SOURCE, Outcome, fuzz_bundle, fuzz_rows, tiny_bundle
    from d2nwg_init.benchmarks.results import deliver, results
    from pretrained_generators.bundle import bundle_folder, embedded_bundles
    from zoo_builder.progress import progress_bar

    rows, failed = [], list[Outcome]()
    with TemporaryDirectory() as work, progress_bar("damaged bundles", total=inputs) as bar:
        whole, without = Path(work) / "tiny", Path(work) / "tiny-without-base"
        tiny_bundle(whole)
        tiny_bundle(without, BASE_SOURCE)
        names = embedded_bundles(whole=True)
        each = max(1, inputs // 25 // len(names))
        half = (inputs - each * len(names)) // 2
        plan = {whole: inputs - each * len(names) - half, without: half} | {bundle_folder(n): each for n in names}
        for folder, count in plan.items():
            found = []
            for outcome in fuzz_bundle(folder, range(seed, seed + count), whole if folder == without else None):
                found.append(outcome)
                bar.advance()
            rows += fuzz_rows(folder.name, found)
            failed += [o for o in found if o.failed]
    if not deliver(results("fuzz", [], rows), out, json_):
        table = Table("bundle", "what", "value")
        for row in rows:
            table.add_row(row.bundle, row.metric, f"{row.value:.3g}" if row.unit == "s" else f"{row.value:,.0f}")
        Console().print(table)
    for o in failed[:20]:
        typer.echo(f"seed {o.seed}: {o.end} in {o.seconds:.2f} s, {o.extra_bytes} bytes more. {o.error}", err=True)
    if failed:
        raise typer.Exit(1)
