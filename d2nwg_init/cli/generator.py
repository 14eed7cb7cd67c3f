"""d2nwg-init generator: train one from a zoo, and audit it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.outputs import out_folder

if TYPE_CHECKING:
    from rich.table import Table

    from pretrained_generators.audit import Sighting

app = typer.Typer(help="Train and audit weight generators.", no_args_is_help=True)


@app.command(epilog="Example: d2nwg-init generator train --zoo runs/zoo --recipe small --out runs/bundle")
@resumable
def train(
    zoo: Annotated[str, typer.Option(help="Folder or fsspec URL of the zoo.")],
    recipe: Annotated[str, typer.Option(help="Name of a shipped recipe, or a TOML file.")],
    out: Annotated[
        Path, typer.Option(callback=out_folder, help="Folder of the bundle; a training that was begun there goes on.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the zoo's datasets, for a recipe that trains end to end.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where it is trained, as torch names it: cpu, cuda.")] = "cpu",
) -> None:
    """Train VAE, dataset encoder and diffusion on a zoo, then, if the recipe says so, encoder and diffusion on what the
    weights are worth, and write a bundle.

    Resumes at the last checkpoint. Under torchrun (-m d2nwg_init) its processes share each batch.
    """
    from d2nwg_init.cli.zoo import check_device
    from pretrained_generators.card import NO_CARD
    from pretrained_generators.training.processes import is_first, process_group
    from pretrained_generators.training.recipe import GeneratorRecipe
    from pretrained_generators.training.train import train_generator
    from zoo_builder.recipe import read_recipe
    from zoo_builder.store import Zoo

    parsed = read_recipe(recipe, GeneratorRecipe, "pretrained_generators")
    with process_group(device):
        check_device(device)
        bundle = train_generator(Zoo.open(zoo), parsed, out, data, device)
        if not is_first():
            return
    for key, value in bundle.measured.items():
        typer.echo(f"{key}: {value:.3f}")
    typer.echo(f"Bundle {bundle.name} written to {out}" + ("." if bundle.has_card else f", without a card: {NO_CARD}"))


@app.command(epilog="Example: d2nwg-init generator audit runs/bundle --zoo runs/zoo")
def audit(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle; audit.json and audit.svg are written there.")],
    zoo: Annotated[str, typer.Option(help="Folder or fsspec URL of the zoo that it was trained on.")],
    samples: Annotated[int, typer.Option(min=1, help="Models generated for each task that was held back.")] = 2,
    json_: Annotated[bool, typer.Option("--json", help="Print what was found as JSON and no table.")] = False,
) -> None:
    """Does it copy its training models? Distances, shared mistakes, and what simpler methods reach.

    The verdict goes into the card, if the bundle has results.
    """
    import json

    from rich.console import Console

    from pretrained_generators.card import write_card
    from pretrained_generators.training.audit_zoo import audit_zoo, write_audit
    from pretrained_generators.training.zoo_data import load_bundle_beside
    from zoo_builder.store import Zoo

    opened = Zoo.open(zoo)
    loaded = load_bundle_beside(opened, bundle)
    found = audit_zoo(loaded, opened, samples)
    report = write_audit(found, loaded.config, bundle)
    write_card(loaded.config, bundle)
    if json_:
        typer.echo(json.dumps(report))
        return
    Console().print(_audit_table(found))
    typer.echo(report["verdict"]["text"])


def _audit_table(found: list[Sighting]) -> Table:
    from rich.table import Table

    table = Table("method", title="Means over the tasks that were held back")
    for heading in ("models", "accuracy (%)", "distance", "overlap of mistakes"):
        table.add_column(heading, justify="right")
    for method in dict.fromkeys(s.method for s in found):
        mine = [s for s in found if s.method == method]
        figures = (sum(getattr(s, key) for s in mine) / len(mine) for key in ("accuracy", "distance", "overlap"))
        accuracy, distance, overlap = figures
        table.add_row(method, str(len(mine)), f"{accuracy:.1f}", f"{distance:.2f}", f"{overlap:.2f}")
    return table
