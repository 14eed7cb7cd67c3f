"""The command line: one typer app, a file a command group. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from d2nwg_init.cli import demo, generator, init, zoo
from zoo_builder.errors import D2NWGError

app = typer.Typer(
    name="d2nwg-init",
    help="Weights generated for your dataset: a drop-in for pretrained=True in timm and torchvision.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(zoo.app, name="zoo")
app.add_typer(generator.app, name="generator")
app.command("init")(init.init)
app.command("demo")(demo.demo)


def main() -> None:
    """Run a command; the project's own errors are a message and exit code 1, Ctrl-C is exit code 130."""
    console = Console(stderr=True)
    try:
        app(standalone_mode=False)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except D2NWGError as e:
        console.print(f"Error ({type(e).__name__}): {e}", style="red", markup=False)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        console.print("Interrupted. What was finished is kept: the same command goes on from there.", markup=False)
        sys.exit(130)
