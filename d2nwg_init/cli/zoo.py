"""d2nwg-init zoo: pretrain a base, build a zoo, look at one."""

from __future__ import annotations

from concurrent.futures import Executor
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli import zoo_datasets, zoo_tools
from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.options import DataFolder
from d2nwg_init.cli.outputs import out_file, out_zoo


class Executors(StrEnum):
    processes = "processes"
    ray = "ray"


app = typer.Typer(help="Build the training set of a generator.", no_args_is_help=True)


@app.command(epilog="Example: d2nwg-init zoo base --data DIR --dataset tinyimagenet --out runs/base.safetensors")
@resumable
def base(
    data: DataFolder,
    out: Annotated[Path, typer.Option(callback=out_file, help="The body to write (safetensors, fp16).")],
    dataset: Annotated[str, typer.Option(help="Dataset in the folder to pretrain on.")] = "tinyimagenet",
    model: Annotated[str, typer.Option(help="timm model name, or torchvision:NAME.")] = "test_resnet",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train images.")] = 60,
    size: Annotated[int, typer.Option(min=32, help="Side of the square images, in pixels.")] = 64,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes torch's default.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the initial weights, order and crops.")] = 0,
) -> None:
    """Pretrain a base checkpoint from scratch. Resumes after every epoch, and leaves a finished one as it is; of other
    settings, or another dataset, than it was begun with it makes nothing."""
    import torch

    from zoo_builder.datasets import load_dataset
    from zoo_builder.pretrain import PretrainConfig, pretrain

    if threads:
        torch.set_num_threads(threads)
    config = PretrainConfig(model=model, size=size, epochs=epochs, seed=seed)
    accuracy = pretrain(load_dataset(dataset, data, size=size, max_images=None), config, out)
    typer.echo(f"{model}: top-1 {accuracy:.1f} % on the test images of {dataset}. The body is in {out}.")


@app.command(
    epilog="Example: d2nwg-init zoo build --recipe small --data DIR --base runs/base.safetensors --out runs/zoo"
)
@resumable
def build(
    recipe: Annotated[str, typer.Option(help="Name of a shipped recipe, or a TOML file.")],
    data: DataFolder,
    out: Annotated[
        str, typer.Option(callback=out_zoo, help="Folder or fsspec URL of the zoo; one that was begun is completed.")
    ],
    base: Annotated[
        str, typer.Option(help="Base checkpoint (safetensors), or 'pretrained' for the library's own weights.")
    ],
    model: Annotated[str, typer.Option(help="timm model name, or torchvision:NAME.")] = "test_resnet",
    model_arg: Annotated[list[str] | None, typer.Option(help="More arguments of the model, as NAME=VALUE.")] = None,
    in_chans: Annotated[int, typer.Option(min=1, help="Channels of the model's stem.")] = 3,
    executor: Annotated[Executors, typer.Option(help="Where tasks run.")] = Executors.processes,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes of one thread each; 0 takes one a core, and one for a GPU.")
    ] = 0,
    address: Annotated[str | None, typer.Option(help="Ray cluster, as `ray start` prints it; else a new one.")] = None,
    device: Annotated[str, typer.Option(help="Where bodies are trained, as torch names it: cpu, cuda.")] = "cpu",
    at_once: Annotated[
        int, typer.Option(min=0, help="Models trained in one pass; 0 takes 1 on the CPU and 32 elsewhere.")
    ] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward pass of the training in bfloat16.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run tasks again that failed before.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch datasets that are not on disk.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the tasks with an estimate, and stop.")] = False,
) -> None:
    """Fine-tune the base on every task of a recipe. Resumable: entries that exist are kept."""
    import os
    import tempfile

    from zoo_builder.backbones import BackboneSpec
    from zoo_builder.build import begin_zoo
    from zoo_builder.build import build as build_tasks
    from zoo_builder.errors import ZooError
    from zoo_builder.estimate import estimate
    from zoo_builder.files import as_path
    from zoo_builder.job import Device
    from zoo_builder.recipe import read_recipe
    from zoo_builder.tasks import ZooRecipe

    parsed = read_recipe(recipe, ZooRecipe, "zoo_builder")
    spec = BackboneSpec(model, in_chans, parsed.size, _model_args(model_arg or []))
    if executor is Executors.processes:
        check_device(device)
    place = Device(device, at_once or (1 if device == "cpu" else 32), bf16)
    cores = workers or (os.cpu_count() or 1 if device == "cpu" else 1)
    with tempfile.TemporaryDirectory() as scratch:
        new = not (as_path(out) / "zoo.json").exists()  # which a dry run leaves so
        where = scratch if dry_run and new else out
        zoo, tasks, sources = begin_zoo(where, spec, base, parsed, data, download, remember=not dry_run)
        if dry_run:
            for task in tasks:
                typer.echo(task.id)
            typer.echo(estimate(zoo, tasks, place, cores))
            return
    failed = build_tasks(
        zoo,
        tasks,
        sources,
        data,
        _executor(executor, workers if executor is Executors.ray else cores, address, device),
        retry_failed=retry_failed,
        device=place,
        download=download,
    )
    if failed:
        first = next(iter(failed))
        raise ZooError(
            f"{len(failed)} of {len(tasks)} tasks failed, the first {first}: {failed[first].strip().splitlines()[-1]}. "
            "The others are in the zoo; --retry-failed runs them again."
        )
    typer.echo(f"{len(tasks)} entries in {out}.")


def check_device(name: str) -> None:
    """
    Raises:
        ZooError: torch has no such device here.
    """
    import torch

    from zoo_builder.errors import ZooError

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as e:  # the latter where torch was built without CUDA
        raise ZooError(f"This machine has no device {name!r} ({str(e).splitlines()[0]}). Try --device cpu.") from e


def _executor(kind: Executors, workers: int, address: str | None, device: str) -> Executor:
    if kind is Executors.ray:
        from zoo_builder.executors.ray import RayExecutor

        return RayExecutor(address, gpus=0 if device == "cpu" else 1, workers=workers)
    from zoo_builder.executors.processes import process_executor

    return process_executor(workers)


def _model_args(given: list[str]) -> dict[str, str | int | float | bool]:
    """NAME=VALUE, the value as TOML where it is, else as text."""
    from zoo_builder.recipe import toml_value

    args = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--model-arg")
        args[name] = toml_value(value)
    return args


@app.command("list", epilog="Example: d2nwg-init zoo list runs/zoo")
def list_entries(zoo: Annotated[str, typer.Argument(help="Folder or fsspec URL of the zoo.")]) -> None:
    """Print the entries with the accuracy (%) of a solved head on the base and on the entry."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from zoo_builder.store import Zoo

    table = Table()
    table.add_column("entry", no_wrap=True, overflow="ignore")  # an id that is cut or folded cannot be copied
    for heading in ("solved %", "entry %", "best %", "at strength", "seconds"):
        table.add_column(heading, justify="right")
    for e in Zoo.open(zoo).entries():
        m = e.metrics
        figures = (m["solved_accuracy"], m["accuracy"], m["best_accuracy"])
        table.add_row(escape(e.id), *(f"{v:.1f}" for v in figures), f"{m['best_strength']:.2f}", f"{e.seconds:.0f}")
    Console().print(table)


app.command("datasets", epilog="Example: d2nwg-init zoo datasets --data DIR --recipe small")(zoo_datasets.datasets)
app.command("verify", epilog="Example: d2nwg-init zoo verify runs/zoo --data DIR")(zoo_tools.verify)
app.command("merge", epilog="Example: d2nwg-init zoo merge runs/zoo runs/other")(zoo_tools.merge)
app.command("export", epilog="Example: d2nwg-init zoo export runs/zoo --entry ID --out a.safetensors")(zoo_tools.export)
app.command("show", epilog="Example: d2nwg-init zoo show runs/zoo ID")(zoo_tools.show)
app.command("stats", epilog="Example: d2nwg-init zoo stats runs/zoo --plot stats.png")(zoo_tools.stats)
