"""d2nwg-init demo: the main job on real images, from start to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.options import JsonRows
from d2nwg_init.cli.outputs import out_file


def demo(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="ImageFolder, .npz file or hf:ORG/NAME@COMMIT (see zoo datasets), may be given several times; "
            "scikit-learn's digits if absent."
        ),
    ] = None,
    bundle: Annotated[
        str, typer.Option(help="Embedded bundle name, a bundle's folder, or ORG/NAME of the Hub, pulled before.")
    ] = "test_resnet-64",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions with other heads, images and orders.")] = 3,
    plot: Annotated[Path, typer.Option(callback=out_file, help="PNG of the curves.")] = Path("demo_curves.png"),
    json_: JsonRows = False,
    out: Annotated[
        Path | None, typer.Option(callback=out_file, help="File to write the JSON to as well, after each dataset.")
    ] = None,
) -> None:
    """Initialise a model in five ways on images that the bundle never saw, fine-tune each for 100 steps, compare."""
    from rich.console import Console

    from d2nwg_init.benchmarks.demo import draw_curves, run_demo
    from d2nwg_init.benchmarks.fine_tuning import FineTuning
    from d2nwg_init.benchmarks.measurable import check_measurable
    from d2nwg_init.benchmarks.results import deliver, results
    from pretrained_generators.base_elsewhere import BaseMissing
    from pretrained_generators.bundle import embedded_bundles, load_bundle
    from pretrained_generators.hub import locate
    from zoo_builder.datasets import load_dataset
    from zoo_builder.datasets.read_images import stored_size
    from zoo_builder.errors import BundleError, DataError

    folder, blobs = locate(bundle, local_files_only=True)
    try:
        loaded = load_bundle(folder, blobs=blobs)
    except BaseMissing:
        whole = ", ".join(embedded_bundles(whole=True))
        raise BundleError(
            f"The bundle {bundle!r} leaves out the base that it generates deltas to, and demo has no other place for "
            f"it. Name one that holds its base ({whole}), or measure this one with its zoo: d2nwg-init bench transfer."
        ) from None
    size = stored_size(loaded.config.generator.size)
    datasets = [load_dataset(source, size=size) for source in data or ["digits"]]
    names = [dataset.name for dataset in datasets]
    for dataset in datasets:
        check_measurable(dataset, [loaded.config])
        if names.count(dataset.name) > 1:
            raise DataError(
                f"--data names {names.count(dataset.name)} datasets {dataset.name!r}, which the results would not tell "
                "apart. Rename their folders, or measure one at a time."
            )
    recipe = FineTuning()
    rows = []
    for i, dataset in enumerate(datasets):
        rows += run_demo(dataset, loaded, recipe, seeds=seeds)
        report = results("demo", datasets[: i + 1], rows, loaded.config)
        deliver(report, out, False)
    printed = deliver(report, None, json_)  # first: what was measured must not be lost with a plot
    draw_curves(rows, plot)
    if printed:
        return
    for dataset in datasets:
        Console().print(
            _table(dataset.name, loaded.config.generator.backbone.model, [r for r in rows if r.dataset == dataset.name])
        )
    typer.echo(f"Curves: {plot}")


def _table(dataset: str, model: str, rows: list) -> object:
    from rich.markup import escape
    from rich.table import Table

    from d2nwg_init.benchmarks.demo import METHODS, mean_accuracies, mean_seconds

    steps = list(mean_accuracies(rows, METHODS[0]))
    table = Table(title=f"{model} on {escape(dataset)}: test accuracy (%) after fine-tuning steps")
    table.add_column("method", no_wrap=True)
    for heading in (*(f"step {s}" for s in steps), "init (s)", "train (s)"):
        table.add_column(heading, justify="right")
    for method in METHODS:
        accuracies = (f"{v:.1f}" for v in mean_accuracies(rows, method).values())
        seconds = (f"{mean_seconds(rows, method, stage):.1f}" for stage in ("initialise", "fine_tune"))
        table.add_row(method, *accuracies, *seconds)
    return table
