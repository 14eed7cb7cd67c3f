"""The command line: one typer app, a file a command group. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from d2nwg_init.cli import bench, bundle, demo, generator, init, zoo
from d2nwg_init.cli.interrupts import ended_alike
from zoo_builder.errors import D2NWGError, DataWarning


class _Commands(TyperGroup):
    """The project's own errors and the system's are a message and exit code 1, Ctrl-C and SIGTERM are exit code 130;
    none is a traceback. Its own warnings are a message. What the terminal's encoding cannot hold is printed as "?"."""

    def invoke(self, ctx: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="replace")
        try:
            with ended_alike(), warnings.catch_warnings():
                others = warnings.showwarning

                def show(message: Any, category: type[Warning], *where: Any) -> None:
                    if issubclass(category, DataWarning):
                        self._say(str(message), "yellow")
                    else:
                        others(message, category, *where)

                warnings.showwarning = show  # type: ignore[assignment]
                return super().invoke(ctx)
        except D2NWGError as e:
            self._say(f"Error ({type(e).__name__}): {e}")
            raise typer.Exit(1) from e
        except BrokenPipeError:  # whoever reads the output has gone: typer ends quietly
            raise
        except OSError as e:  # a full disk, a path that cannot be written
            self._say(f"Error ({type(e).__name__}): {e}")
            raise typer.Exit(1) from e
        except KeyboardInterrupt as e:
            self._say(f"Interrupted. {e}".strip())
            raise typer.Exit(130) from e

    @staticmethod
    def _say(text: str, style: str = "red") -> None:
        # Wrapped by the terminal alone: a path that is cut cannot be copied.
        Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


app = typer.Typer(
    name="d2nwg-init",
    cls=_Commands,
    help="Weights generated for your dataset: a drop-in for pretrained=True in timm and torchvision.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(zoo.app, name="zoo")
app.add_typer(generator.app, name="generator")
app.add_typer(bundle.app, name="bundle")
app.add_typer(bench.app, name="bench")
app.command("init", epilog="Example: d2nwg-init init test_resnet --data photos/ --out weights/")(init.init)
app.command("demo", epilog="Example: d2nwg-init demo --data photos/ --seeds 3")(demo.demo)
