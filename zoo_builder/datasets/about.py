"""datasets.toml: what a data folder says of the datasets in it, since few files tell their own licence."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from zoo_builder.errors import DataError, RecipeError
from zoo_builder.recipe import parse_config

FILE = "datasets.toml"


@dataclass(frozen=True)
class About:
    licence: str | None = None
    origin: str | None = None


def read_about(folder: Path, name: str) -> About:
    """The table [`name`] of `folder`/datasets.toml; nothing known where there is none.

    Raises:
        DataError: it is no TOML, or says something else.
    """
    path = folder / FILE
    if not path.is_file():
        return About()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return parse_config(tables[name], About) if name in tables else About()
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecipeError) as e:
        raise DataError(f'{path}, {name}: {e}. Expected tables with licence = "..." and origin = "...".') from e
