"""d2nwg-init zoo: pretrain a base, build a zoo, look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build the training set of a generator.", no_args_is_help=True)


@app.command(epilog="Example: d2nwg-init zoo base --data DIR --dataset tinyimagenet --out runs/base.safetensors")
def base(
    data: Annotated[Path, typer.Option(help="Folder of datasets: .npz files or folders of class folders.")],
    out: Annotated[Path, typer.Option(help="The body to write (safetensors, fp16).")],
    dataset: Annotated[str, typer.Option(help="Dataset in the folder to pretrain on.")] = "tinyimagenet",
    model: Annotated[str, typer.Option(help="timm model name.")] = "test_resnet",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train images.")] = 60,
    size: Annotated[int, typer.Option(min=32, help="Side of the square images, in pixels.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes torch's default.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights, order and crops.")] = 0,
) -> None:
    """Pretrain a base checkpoint from scratch. Resumes after every epoch."""
    import torch

    from zoo_builder.datasets import load_dataset
    from zoo_builder.pretrain import PretrainConfig, pretrain

    if threads:
        torch.set_num_threads(threads)
    config = PretrainConfig(model=model, size=size, epochs=epochs, seed=seed)
    accuracy = pretrain(load_dataset(dataset, data), config, out)
    typer.echo(f"{model}: top-1 {accuracy:.1f} % on the test images of {dataset}. Body written to {out}.")


@app.command(
    epilog="Example: d2nwg-init zoo build --recipe small --data DIR --base runs/base.safetensors --out runs/zoo"
)
def build(
    recipe: Annotated[str, typer.Option(help="Name of a shipped recipe, or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Folder of datasets: .npz files or folders of class folders.")],
    out: Annotated[Path, typer.Option(help="Folder of the zoo; one that was begun is completed.")],
    base: Annotated[Path, typer.Option(help="Base checkpoint, as `zoo base` writes it.")],
    model: Annotated[str, typer.Option(help="timm model name of the base.")] = "test_resnet",
    workers: Annotated[int, typer.Option(help="Processes of one thread each; 0 takes one a core.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the tasks and stop.")] = False,
) -> None:
    """Fine-tune the base on every task of a recipe. Resumable: entries that exist are kept."""
    import os
    from importlib.metadata import version

    from zoo_builder.backbones import create_backbone
    from zoo_builder.errors import ZooError
    from zoo_builder.executors import build as build_tasks
    from zoo_builder.recipe import read_recipe
    from zoo_builder.store import Zoo
    from zoo_builder.tasks import ZooRecipe, plan_tasks

    parsed = read_recipe(recipe, ZooRecipe, "zoo_builder")
    tasks = plan_tasks(parsed)
    if dry_run:
        for task in tasks:
            typer.echo(task.id)
        typer.echo(f"{len(tasks)} tasks")
        return
    create_backbone(model, base)  # a base that does not fit is an error now, not in every task
    versions = {name: version(name) for name in ("d2nwg-init", "torch", "timm")}
    zoo = Zoo.create(out, model, base, parsed, versions)
    failed = build_tasks(zoo, tasks, data, workers or os.cpu_count() or 1)
    if failed:
        raise ZooError(f"{len(failed)} of {len(tasks)} tasks failed; see {out}/failed. The rest is in the zoo.")
    typer.echo(f"{len(tasks)} entries in {out}.")


@app.command("list", epilog="Example: d2nwg-init zoo list runs/zoo")
def list_entries(zoo: Annotated[Path, typer.Argument(help="Folder of the zoo.")]) -> None:
    """Print the entries with the accuracy (%) of a solved head on the base and on the entry."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from zoo_builder.store import Zoo

    table = Table("entry", "solved %", "entry %", "best %", "at strength", "seconds")
    for e in Zoo.open(zoo).entries():
        m = e.metrics
        figures = (m["solved_accuracy"], m["accuracy"], m["best_accuracy"])
        table.add_row(escape(e.id), *(f"{v:.1f}" for v in figures), f"{m['best_strength']:.2f}", f"{m['seconds']:.0f}")
    Console().print(table)
