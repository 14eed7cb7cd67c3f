"""Local paths and fsspec URLs alike; writes that are whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import cast

from zoo_builder.errors import ZooError


def as_path(path: str | Path) -> Path:
    """A local path, or a URL that fsspec knows (s3://, hf://, memory://) with a path's methods.

    Raises:
        ZooError: a URL of a kind that fsspec does not know, or that needs a package that is not installed.
    """
    if "://" not in str(path):
        return Path(path)
    try:
        from upath import UPath
    except ImportError as e:
        raise ZooError(f"The URL {path} needs universal-pathlib: pip install 'd2nwg-init[zoo]'") from e
    try:
        url = UPath(path)
        _ = url.fs  # which needs the package of its kind
    except ImportError as e:
        raise ZooError(f"The URL {path} needs a package that is not installed ({e}).") from e
    except ValueError as e:
        raise ZooError(
            f"{path} is no URL that fsspec can open ({e}). Expected a folder, or a URL such as s3://BUCKET/zoo."
        ) from e
    return Path(url.path) if url.protocol in ("file", "local") else cast(Path, url)


def write_bytes(path: Path, contents: bytes) -> None:
    """All of it or nothing: locally by a temporary name that is moved; object stores put whole objects anyway."""
    if not is_local(path):
        path.write_bytes(contents)
        return
    write_together(path.parent, {path.name: contents})


def write_text_atomically(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Files of a local folder, by name: each gets its name, in their order, once all are written, so that what cannot
    be written changes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: temporary_name(folder / name) for name in contents}
    try:
        for name, path in temporary.items():
            with path.open("wb") as file:
                file.write(contents[name])
                file.flush()
                os.fsync(file.fileno())  # or a crash of the machine could leave the name without the bytes
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """In the same folder; no other process has it, on any host: containers number theirs alike."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def is_local(path: Path) -> bool:
    return isinstance(path, PurePath)
