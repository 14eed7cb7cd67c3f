"""d2nwg-init bundle: look at generator bundles, check them, and exchange them with the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.interrupts import resumable
from d2nwg_init.cli.outputs import out_folder

SOURCE = (
    "Name of an embedded bundle, a folder (./NAME where an embedded one has its name), or ORG/NAME[@REVISION] of the "
    "Hub, from its client's cache."
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON and no table.")]

app = typer.Typer(
    help="Look at generator bundles, check them, and exchange them with the Hub. The Hub's client is configured by its "
    "own variables: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.",
    no_args_is_help=True,
)


@app.command("list", epilog="Example: d2nwg-init bundle list --hub --architecture test_resnet --commercial")
def list_(
    architecture: Annotated[str | None, typer.Option(help="timm model name, or torchvision:NAME.")] = None,
    commercial: Annotated[
        bool | None,
        typer.Option(
            "--commercial/--research", help="Only those whose training data allows commercial use, or only the others."
        ),
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Ask the Hub as well.")] = False,
    json_: Json = False,
) -> None:
    """Bundles that are embedded, in the Hub client's cache and, with --hub, on the Hub."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from pretrained_generators.generator_list import list_generators

    found = list_generators(architecture, commercial, hub)
    if json_:
        typer.echo(json.dumps([asdict(i) for i in found]))
        return
    if not found:
        typer.echo("None of these." if hub else "None of these is here; --hub asks the Hub as well.")
        return
    table = Table()
    for heading in ("bundle", "where", "architecture", "pixels", "commercial use", "weights (SHA-256)"):
        table.add_column(heading, overflow="fold")
    for i in found:
        use = "allowed" if i.commercial else "no"
        table.add_row(i.name, i.where, i.architecture, str(i.size), use, i.weights_sha256[:10])
    Console(markup=False, emoji=False).print(table)  # names and architectures are anybody's


@app.command(epilog="Example: d2nwg-init bundle show test_resnet-64")
def show(bundle: Annotated[str, typer.Argument(help=SOURCE)], json_: Json = False) -> None:
    """What a bundle says of itself."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from pretrained_generators.bundle import load_config
    from pretrained_generators.hub import locate

    config = load_config(*locate(bundle, local_files_only=True))
    if json_:
        typer.echo(json.dumps(asdict(config)))
        return
    generator, elsewhere = config.generator, config.base_elsewhere
    facts = {
        "generates": f"{generator.backbone.model}, for images of {generator.size} pixels",
        "numbers generated": f"{generator.layout.size:,} in {len(generator.layout.blocks)} tensors",
        "base": f"pretrained on {config.base_pretrained_on}, licence: {config.base_licence}; "
        + (f"not in the bundle: {elsewhere.source}" if elsewhere else "in the bundle"),
        "trained on": ", ".join(f"{t.name} ({t.entries} entries, {t.licence})" for t in config.trained_on),
        "commercial use": "allowed by all licences" if config.commercial else "not allowed by all licences",
        "held out": ", ".join(config.held_out),
        "measured": ", ".join(f"{k} {v:.3g}" for k, v in config.measured.items()),
        "files": "\n".join(f"{f.name}, {f.bytes:,} bytes, {f.sha256}" for f in config.files),
        "format": str(config.format),
    }
    table = Table(title=escape(config.name), show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(value, overflow="fold"))
    Console().print(table)


@app.command(epilog="Example: d2nwg-init bundle verify runs/bundle")
def verify(
    bundles: Annotated[
        list[str] | None, typer.Argument(help=f"{SOURCE} All embedded ones where none is given.")
    ] = None,
    json_: Json = False,
) -> None:
    """Check bundles as loading does: files, hashes, config, names, shapes and types of tensors, finite values."""
    import json

    from pretrained_generators.bundle import embedded_bundles
    from pretrained_generators.hub import verify_bundle
    from zoo_builder.errors import BundleError

    found: dict[str, str | None] = {}
    for name in bundles or embedded_bundles():
        try:
            config = verify_bundle(name, local_files_only=True)
            found[name] = None
            line = f"{name}: {len(config.files)} files, {sum(f.bytes for f in config.files):,} bytes, sound"
        except BundleError as e:
            found[name] = str(e)
            line = f"{name}: {e}"
        if not json_:
            typer.echo(line)
    if json_:
        typer.echo(json.dumps({name: {"sound": error is None, "error": error} for name, error in found.items()}))
    if any(found.values()):
        raise typer.Exit(1)


@app.command(epilog="Example: d2nwg-init bundle pull ORG/NAME --revision v1")
@resumable
def pull(
    bundle: Annotated[str, typer.Argument(help="ORG/NAME or ORG/NAME@REVISION.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; the main branch if none is given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch anew what is in the cache already.")] = False,
    out: Annotated[
        Path | None, typer.Option(callback=out_folder, help="Folder to make, and to copy it to as well.")
    ] = None,
) -> None:
    """Fetch a bundle into the Hub client's cache, and check it."""
    import shutil
    from tempfile import TemporaryDirectory

    from pretrained_generators.bundle_files import CONFIG
    from pretrained_generators.hub import locate, on_hub, verify_bundle
    from zoo_builder.errors import BundleError

    name = on_hub(bundle)
    if name is None:
        raise BundleError(f"{bundle!r} is here already, or no name of a repository of the Hub: expected ORG/NAME.")
    if out and out.exists():
        raise BundleError(f"{out} is there already: expected a folder to make.")
    folder, _ = locate(bundle, revision=revision, force_download=force)
    pinned = f"{name[0]}@{folder.name}"
    config = verify_bundle(pinned, local_files_only=True)
    typer.echo(f'{config.name}, checked, is in the cache: {folder}\nUse it with initialize(..., generator="{pinned}")')
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:  # out is whole, or not there
            copied = Path(beside) / out.name
            copied.mkdir()
            for file in (*(f.name for f in config.files), CONFIG):
                shutil.copyfile(folder / file, copied / file)
            copied.rename(out)
        typer.echo(f"Copied to {out}.")


@app.command(epilog="Example: d2nwg-init bundle push runs/bundle ORG/NAME --private")
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    repo: Annotated[str, typer.Argument(help="ORG/NAME; made where there is none.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a repository that is made; else the Hub's default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; the main branch if none is given.")] = None,
) -> None:
    """Check a bundle and push it to the Hub as it is, in one commit. It must have results, and with them a card.

    Results on datasets of the Hub (hf:ORG/NAME@COMMIT) are told there as .eval_results, too.
    """
    from pretrained_generators.push import push_bundle

    commit = push_bundle(folder, repo, private, revision)
    typer.echo(f"Pushed {folder} as {repo}@{commit.oid}")


@app.command(epilog="Example: d2nwg-init bundle card runs/bundle --results results.json")
def card(
    folder: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    results: Annotated[
        Path | None,
        typer.Option(
            help="What demo --bundle FOLDER --out FILE, or bench transfer, measured with these weights; what it says "
            "of them is kept."
        ),
    ] = None,
) -> None:
    """Record every file of the folder in its config.json, and write the model card (README.md) anew.

    A card tells what was measured: there is none without results, kept now or before.
    The weights themselves must be those that are recorded already.
    """
    from pretrained_generators.bundle import check_weights, load_config
    from pretrained_generators.card import NO_CARD, write_card
    from pretrained_generators.card_results import keep_results
    from pretrained_generators.hub import verify_bundle

    config = load_config(folder)
    check_weights(config, folder)
    if results:
        keep_results(results, config, folder)
    write_card(config, folder)
    config = verify_bundle(folder)
    typer.echo(f"{folder}: {', '.join(f.name for f in config.files)} recorded.")
    if not config.has_card:
        typer.echo(f"No card was written: {NO_CARD}")


@app.command(epilog="Example: d2nwg-init bundle neighbours runs/bundle --data DATA")
def neighbours(
    folder: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Annotated[Path, typer.Option(help="Folder of the datasets that it was trained on.")],
) -> None:
    """Keep with a bundle what its datasets look like, so that reports tell the nearest ones. New bundles have it.

    Prints each dataset's nearest others. The weights are not touched.
    """

    from pretrained_generators.bundle import load_bundle, record_files, statistics_file
    from pretrained_generators.bundle_files import STATISTICS
    from pretrained_generators.nearest_datasets import neighbours as sort_by_distance
    from pretrained_generators.training.dataset_statistics import statistics_of_datasets

    bundle = load_bundle(folder)
    names = [t.name for t in bundle.config.trained_on]
    statistics = statistics_of_datasets(bundle.generator, names, data)
    record_files(bundle.config, folder, {STATISTICS: statistics_file(statistics)})
    for name, own in zip(names, statistics, strict=True):
        found = [n for n in sort_by_distance(own, statistics, names) if n.name != name]
        typer.echo(f"{name}: " + ", ".join(f"{n.name} {n.distance:.2f}" for n in found[:3]))
    typer.echo(f"{folder / STATISTICS} recorded.")


@app.command(epilog="Example: d2nwg-init bundle diff test_resnet-64 runs/bundle")
def diff(
    first: Annotated[str, typer.Argument(help=SOURCE)],
    second: Annotated[str, typer.Argument(help="The same.")],
    json_: Json = False,
) -> None:
    """What differs between two bundles: what they say of themselves, and their tensors."""
    import json

    from rich.console import Console
    from rich.table import Table

    from pretrained_generators.bundle_diff import compare_bundles

    found = compare_bundles(first, second)
    if json_:
        typer.echo(json.dumps(found))
        return
    if not found:
        typer.echo("No difference.")
        return
    table = Table("what", first, second)
    for name, (a, b) in found.items():
        table.add_row(name, *("-" if v is None else str(v)[:200] for v in (a, b)))
    Console(markup=False, emoji=False).print(table)
