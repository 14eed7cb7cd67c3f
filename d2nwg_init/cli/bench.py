"""d2nwg-init bench: measure this project against what one would do without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2nwg_init.cli.bench_ablate import ablate
from d2nwg_init.cli.bench_fuzz import fuzz
from d2nwg_init.cli.bench_generator import generator
from d2nwg_init.cli.bench_hub import hub
from d2nwg_init.cli.bench_init import init
from d2nwg_init.cli.bench_never_worse import never_worse
from d2nwg_init.cli.bench_sensitivity import sensitivity
from d2nwg_init.cli.bench_torch_versions import torch_versions
from d2nwg_init.cli.bench_transfer import transfer
from d2nwg_init.cli.bench_uncovered import uncovered
from d2nwg_init.cli.options import DataFolder, JsonRows, OutJson
from d2nwg_init.cli.outputs import out_file

if TYPE_CHECKING:
    from rich.table import Table

    from d2nwg_init.benchmarks.results import Row

app = typer.Typer(help="Measure this project against the plain way.", no_args_is_help=True)


@app.command(epilog="Example: d2nwg-init bench zoo --data DIR --base runs/base.safetensors --out zoo.json")
def zoo(
    data: DataFolder,
    base: Annotated[
        str, typer.Option(help="Base checkpoint (safetensors), or 'pretrained' for the library's own weights.")
    ],
    recipe: Annotated[
        str, typer.Option(help="Recipe, by name or TOML file: its datasets, held-out ones and image size are taken.")
    ] = "small",
    model: Annotated[str, typer.Option(help="timm model name, or torchvision:NAME.")] = "test_resnet",
    tasks: Annotated[int, typer.Option(min=1, help="Fine-tuning tasks, the same for both methods.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a task, of 128 images each.")] = 120,
    workers: Annotated[int, typer.Option(min=0, help="The builder's processes of one thread; 0 takes one a core.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="Models that the builder trains at once on a GPU.")] = 32,
    bf16: Annotated[bool, typer.Option("--bf16", help="The builder's forward pass in bfloat16.")] = False,
    json_: JsonRows = False,
    out: OutJson = None,
) -> None:
    """Entries per hour of the zoo builder and of a plain loop over the same fine-tuning tasks, one after the other; on
    the CPU, and on a GPU where there is one."""
    import os

    import torch
    from rich.console import Console

    from d2nwg_init.benchmarks.results import deliver, results
    from d2nwg_init.benchmarks.zoo import bench_recipe, run_zoo_benchmark
    from zoo_builder.backbones import BackboneSpec
    from zoo_builder.datasets import dataset_names, load_dataset
    from zoo_builder.job import Device
    from zoo_builder.recipe import read_recipe
    from zoo_builder.tasks import ZooRecipe, choose_datasets

    given = read_recipe(recipe, ZooRecipe, "zoo_builder")
    measured = bench_recipe(given, choose_datasets(given, dataset_names(data)), tasks, steps)
    spec = BackboneSpec(model, img_size=measured.size)
    cores = workers or os.cpu_count() or 1
    rows = run_zoo_benchmark(measured, tasks, spec, base, data, cores, Device(bf16=bf16))
    if torch.cuda.is_available():
        rows += run_zoo_benchmark(measured, tasks, spec, base, data, 1, Device("cuda", at_once, bf16))
    report = results("zoo", (load_dataset(name, data) for name in measured.datasets), rows)
    if deliver(report, out, json_):
        return
    Console().print(_table(rows, f"{model}: {tasks} fine-tuning tasks of {steps} steps"))
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        typer.echo(_comparison(rows, device))


@app.command(epilog="Example: d2nwg-init bench bases --data DIR test_vit mobilevit_xxs --out bases.json")
def bases(
    models: Annotated[list[str], typer.Argument(help="timm model names, or torchvision:NAME.")],
    data: DataFolder,
    dataset: Annotated[str, typer.Option(help="Dataset in the folder to pretrain on.")] = "tinyimagenet",
    size: Annotated[int, typer.Option(min=32, help="Side of the square images, in pixels.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="Time for each model, rounded to whole epochs.")] = 200,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes torch's default.")] = 1,
    json_: JsonRows = False,
    out: Annotated[
        Path | None, typer.Option(callback=out_file, help="File to write the JSON to as well, after each model.")
    ] = None,
) -> None:
    """Test accuracy that models reach from scratch in equal time: which to pretrain as a base."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from d2nwg_init.benchmarks.bases import race_bases
    from d2nwg_init.benchmarks.results import deliver, results
    from zoo_builder.datasets import load_dataset

    if threads:
        torch.set_num_threads(threads)
    source = load_dataset(dataset, data, size=size, max_images=None)
    table = Table("model", title=f"{dataset} at {size} pixels, about {seconds:.0f} s each on {threads} threads")
    for heading in ("test accuracy (%)", "seconds", "images/s", "parameters (M)"):
        table.add_column(heading, justify="right")
    rows: list[Row] = []
    for found in race_bases(models, source, size, seconds):
        rows += found
        accuracy, took, speed, parameters = (r.value for r in found)
        table.add_row(found[0].bundle, f"{accuracy:.1f}", f"{took:.0f}", f"{speed:.0f}", f"{parameters / 1e6:.2f}")
        deliver(results("bases", [source], rows), out, False)
    if not deliver(results("bases", [source], rows), None, json_):
        Console().print(table)


def _table(rows: list[Row], title: str) -> Table:
    from rich.table import Table

    from d2nwg_init.benchmarks.zoo import METHODS, figure

    table = Table("method", "device", title=title)
    for heading in ("entries an hour", "test accuracy (%)"):
        table.add_column(heading, justify="right")
    for device in ("cpu", "cuda"):
        for method in METHODS if device == "cuda" else METHODS[:2]:
            figures = (figure(rows, method, "entries_per_hour", device), figure(rows, method, "test_accuracy", device))
            texts = (f"{figures[0]:.0f}", f"{figures[1]:.1f}") if figures[0] > 0 else 2 * ("not measured",)
            table.add_row(method, device, *texts)
    return table


def _comparison(rows: list[Row], device: str) -> str:
    """The builder over the plain loop, with the standard error over tasks where there are several."""
    from statistics import mean, stdev

    from d2nwg_init.benchmarks.zoo import METHODS, accuracies, figure

    fast, plain, one = (figure(rows, method, "entries_per_hour", device) for method in METHODS)
    pairs = zip(*(accuracies(rows, method, device) for method in METHODS[:2]), strict=True)
    apart = [a - b for a, b in pairs]
    error = f" ± {stdev(apart) / len(apart) ** 0.5:.1f}" if len(apart) > 1 else ""
    over_one = f" ({fast / one:.2f} times those of one at a time)" if one > 0 else ""
    return (
        f"{device}: the builder makes {fast / plain:.2f} times as many entries{over_one}; its test accuracy is "
        f"{mean(apart):+.1f}{error} points apart."
    )


app.command("transfer", epilog="Example: d2nwg-init bench transfer --data DIR --zoo runs/zoo --out transfer.json")(
    transfer
)
app.command("fuzz", epilog="Example: d2nwg-init bench fuzz --inputs 20000 --out docs/results/fuzz.json")(fuzz)
app.command("init", epilog="Example: d2nwg-init bench init --out docs/results/init.json")(init)
app.command("never-worse", epilog="Example: d2nwg-init bench never-worse --data DIR --out never_worse.json")(
    never_worse
)
app.command("hub", epilog="Example: d2nwg-init bench hub ORG/NAME --out docs/results/hub.json")(hub)
app.command("torch-versions", epilog="Example: d2nwg-init bench torch-versions --other 2.6.0")(torch_versions)
app.command("generator", epilog="Example: d2nwg-init bench generator --zoo runs/zoo --bundle runs/bundle --data DIR")(
    generator
)
app.command(
    "ablate", epilog="Example: d2nwg-init bench ablate --bundle NAME --data DIR --out docs/results/ablate.json"
)(ablate)
app.command("sensitivity", epilog="Example: d2nwg-init bench sensitivity --zoo runs/zoo --recipe benchmark --data DIR")(
    sensitivity
)
app.command(
    "uncovered", epilog="Example: d2nwg-init bench uncovered resnet18 --weights resnet18.safetensors --data DIR"
)(uncovered)
