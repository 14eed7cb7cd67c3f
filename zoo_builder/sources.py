"""datasets.json: what a zoo remembers of its datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from zoo_builder.errors import RecipeError, ZooError
from zoo_builder.files import write_bytes
from zoo_builder.recipe import parse_config

FILE = "datasets.json"


@dataclass(frozen=True)
class SourceRecord:
    """What a zoo remembers of a dataset."""

    licence: str
    origin: str
    sha256: str
    cluster: int


def read_sources(zoo: Path) -> dict[str, SourceRecord]:
    """By the datasets' names; none where the zoo has not looked at any yet.

    Raises:
        ZooError: the file is damaged.
    """
    path = zoo / FILE
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
        return {name: parse_config(values, SourceRecord) for name, values in found.items()}
    except (OSError, ValueError, AttributeError, RecipeError) as e:
        raise ZooError(
            f"{path} does not describe datasets ({e}). Put it back, or remove it: the next build looks at them anew."
        ) from e


def write_sources(zoo: Path, sources: Mapping[str, SourceRecord]) -> None:
    write_bytes(zoo / FILE, json.dumps({name: asdict(source) for name, source in sources.items()}, indent=1).encode())
