"""d2nwg-init bench init: what a call of initialize() costs."""

from __future__ import annotations

from typing import Annotated

import typer

from d2nwg_init.cli.options import JsonRows, OutJson


def init(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(help="Embedded bundles by name, or folders; none takes the embedded ones with a base."),
    ] = None,
    data: Annotated[str, typer.Option(help="Dataset: 'digits', or a .npz file or folder.")] = "digits",
    images: Annotated[int, typer.Option(min=2, help="Training images to read, at most.")] = 1024,
    candidates: Annotated[int, typer.Option(min=1, help="Bodies to generate.")] = 8,
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Seconds of initialize() by stage, beside a forward pass and an epoch of fine-tuning; its memory; its import."""
    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks.init import import_row, run_init_benchmark
    from d2nwg_init.benchmarks.results import deliver, results
    from pretrained_generators.bundle import embedded_bundles, load_config
    from zoo_builder.datasets import load_dataset
    from zoo_builder.datasets.read_images import stored_size

    names = bundles or embedded_bundles(whole=True)
    datasets = [load_dataset(data, size=stored_size(load_config(name).generator.size)) for name in names]
    rows = [import_row()]
    for name, dataset in zip(names, datasets, strict=True):
        rows += run_init_benchmark(name, dataset, num_candidates=candidates, num_support=images)
    if not deliver(results("init", datasets[:1], rows), out, json_):
        table = Table("bundle", "metric", "of", "value")
        for row in rows:
            table.add_row(row.bundle, row.metric, row.method, f"{row.value:.4g} {row.unit if row.unit != '1' else ''}")
        Console().print(table)
