"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2nwg_init.cli.outputs import out_file

DataFolder = Annotated[Path, typer.Option(help="Folder of datasets: .npz files or folders of class folders.")]
JsonRows = Annotated[bool, typer.Option("--json", help="Print rows as JSON and no table.")]
OutJson = Annotated[Path | None, typer.Option(callback=out_file, help="File to write the JSON to as well.")]
