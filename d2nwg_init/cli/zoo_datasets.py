"""d2nwg-init zoo datasets: what there is to build a zoo from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from d2nwg_init.cli.options import DataFolder
from d2nwg_init.cli.zoo_tables import datasets_table

if TYPE_CHECKING:
    from zoo_builder.datasets import ImageDataset


def datasets(
    data: DataFolder,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names in the folder, torchvision:NAME, hf:ORG/NAME@REVISION or plugin:NAME; else all."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe: mark what it holds out, and look for its images in the others.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch datasets of torchvision and the Hub that lack.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object and no table.")] = False,
) -> None:
    """Read every dataset and tell its size, licence, source and hash, and its images that are broken or leak. Exit code
    1 where one cannot be read; the others are told all the same."""
    import functools
    import json
    from dataclasses import asdict

    from rich.console import Console

    from zoo_builder.datasets import dataset_names, load_dataset, plugin_names
    from zoo_builder.datasets.same_dataset import is_among
    from zoo_builder.errors import DataError
    from zoo_builder.leakage import find_leaks, held_out_datasets
    from zoo_builder.progress import progress_bar
    from zoo_builder.recipe import read_recipe
    from zoo_builder.tasks import ZooRecipe

    load = functools.partial(load_dataset, data_dir=data, download=download)
    held_out = read_recipe(recipe, ZooRecipe, "zoo_builder").held_out if recipe else ()
    available = dataset_names(data)
    found, unreadable = [], {}
    chosen = names or [*available, *plugin_names()]
    with progress_bar("reading the datasets", total=len(chosen)) as bar:
        for name in chosen:
            try:
                found.append(load(name))
            except DataError as e:
                unreadable[name] = str(e)
            bar.advance()
    ours = (d for d in found if not is_among(d.name, held_out))
    compared: list[str] = []

    def held_out_sets() -> Iterator[ImageDataset]:
        for dataset in held_out_datasets(held_out, available, load):
            compared.append(dataset.name)
            yield dataset

    leaks = find_leaks(ours, held_out_sets()) if held_out else {}
    absent = [name for name in held_out if not is_among(name, compared)]
    if json_:
        about = [
            {
                "name": d.name,
                "classes": d.num_classes,
                "train": len(d.x_train),
                "test": len(d.x_test),
                "pixels": d.x_train.shape[1],
                "licence": d.licence,
                "origin": d.origin,
                "sha256": d.sha256,
                "broken": list(d.skipped),
                "held_out": is_among(d.name, held_out),
            }
            for d in found
        ]
        leaking = [asdict(k) | {"images": n} for k, n in leaks.items()]
        told = {"datasets": about, "leaks": leaking, "not_looked_for": absent, "unreadable": unreadable}
        typer.echo(json.dumps(told))
    else:
        Console().print(datasets_table(found, held_out))
        for leak, count in leaks.items():
            typer.echo(f"- {count} images of {leak.zoo_dataset} are in {leak.held_out_dataset} ({leak.kind})")
        if compared and not leaks:
            typer.echo("No held-out image was found in the other datasets.")
        if absent:
            typer.echo(f"Held out, but not there to be looked for in the others: {', '.join(absent)}.")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(chosen)} cannot be read. {' '.join(unreadable.values())}")
