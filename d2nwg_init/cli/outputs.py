"""Callbacks of options that name what is written: that it cannot be is found out before the work, not after."""

from __future__ import annotations

import os
from pathlib import Path

from zoo_builder.errors import D2NWGError


def out_file(path: Path | None) -> Path | None:
    """
    Raises:
        D2NWGError: no file can be written there.
    """
    if path is not None and path.is_dir():
        raise D2NWGError(f"{path} is a folder; expected the name of a file to write. Name one in it.")
    if path is not None:
        out_folder(path.parent)
    return path


def out_folder(path: Path | None) -> Path | None:
    """
    Raises:
        D2NWGError: the folder is not there and cannot be made, or cannot be written to.
    """
    if path is not None:
        there = next((p for p in (path, *path.parents) if p.exists()), None)
        if there is None:
            raise D2NWGError(f"{path} cannot be a folder: there is no {path.anchor or path}. Name another place.")
        if not there.is_dir():
            raise D2NWGError(f"{path} cannot be a folder: {there} is a file. Name another place to write to.")
        if not os.access(there, os.W_OK):
            raise D2NWGError(f"{there} cannot be written to. Name another place, or allow it.")
    return path


def out_weights(path: Path) -> Path | None:
    """One file where it is called so, else a folder."""
    return out_file(path) if path.suffix == ".safetensors" else out_folder(path)


def out_zoo(path: str) -> str:
    """A folder, or a URL, of which nothing can be told yet."""
    if "://" not in path:
        out_folder(Path(path))
    return path
