"""d2nwg-init bench hub: a bundle's way to the Hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.options import JsonRows, OutJson


def hub(
    repo: Annotated[
        str, typer.Argument(help="ORG/NAME to push to; made where there is none. HF_ENDPOINT is honoured.")
    ],
    bundle: Annotated[str, typer.Option(help="Name of an embedded bundle, or a folder.")] = "test_resnet-64",
    data: Annotated[str, typer.Option(help="Dataset to initialize a model for: 'digits', or a folder.")] = "digits",
    private: Annotated[bool, typer.Option("--private/--public", help="Of a repository that is made.")] = True,
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Push a bundle, pull that commit into a second cache, and initialize a model with what was pulled."""
    from tempfile import TemporaryDirectory

    from huggingface_hub import __version__, constants
    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks.hub import round_trip
    from d2nwg_init.benchmarks.results import deliver, results
    from pretrained_generators.bundle import load_config
    from zoo_builder.datasets import load_dataset
    from zoo_builder.datasets.read_images import stored_size

    dataset = load_dataset(data, size=stored_size(load_config(bundle).generator.size))
    with TemporaryDirectory() as cache:
        found = round_trip(bundle, repo, private, dataset, Path(cache))
    where = {"endpoint": constants.ENDPOINT, "repository": repo, "revision": found.commit, "client": __version__}
    if not deliver(results("hub", [dataset], found.rows) | {"hub": where}, out, json_):
        table = Table("step", "what", "value")
        for row in found.rows:
            table.add_row(row.method, row.metric, f"{row.value:.4g} {row.unit if row.unit != '1' else ''}")
        Console().print(table)
        typer.echo(f"{repo}@{found.commit} on {where['endpoint']}")
