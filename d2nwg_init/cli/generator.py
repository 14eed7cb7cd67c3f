"""d2nwg-init generator: train one from a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train weight generators.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Train weight generators."""


@app.command(epilog="Example: d2nwg-init generator train --zoo runs/zoo --recipe small --out runs/bundle")
def train(
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    recipe: Annotated[str, typer.Option(help="Name of a shipped recipe, or a TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; a training that was begun there goes on.")],
) -> None:
    """Train VAE, dataset encoder and diffusion on a zoo and write a bundle. Resumes at the last checkpoint."""
    from pretrained_generators.training.recipe import GeneratorRecipe
    from pretrained_generators.training.train import train_generator
    from zoo_builder.recipe import read_recipe
    from zoo_builder.store import Zoo

    parsed = read_recipe(recipe, GeneratorRecipe, "pretrained_generators")
    bundle = train_generator(Zoo.open(zoo), parsed, out)
    for key, value in bundle.measured.items():
        typer.echo(f"{key}: {value:.3f}")
    typer.echo(f"Bundle {bundle.name} written to {out}.")
