"""TOML -> a frozen dataclass. Unknown keys and wrong types are errors that say where and what is near."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import pydantic

from zoo_builder.errors import RecipeError, nearest_names

T = TypeVar("T")


def read_recipe(recipe: str | Path, schema: type[T], package: str) -> T:
    """Read a recipe by file path, or by the name of one that ships in `package`/recipes.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, or a value of the wrong type.
    """
    shipped = {
        p.name.removesuffix(".toml"): p
        for p in importlib.resources.files(package).joinpath("recipes").iterdir()
        if p.name.endswith(".toml")
    }
    if str(recipe) in shipped:
        text = shipped[str(recipe)].read_bytes()
    elif Path(recipe).is_file():
        text = Path(recipe).read_bytes()
    else:
        raise RecipeError(
            f"No recipe {str(recipe)!r}: expected a TOML file or a shipped name; {nearest_names(str(recipe), shipped)}"
        )
    try:
        return parse_config(tomllib.loads(text.decode()), schema)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecipeError) as e:
        raise RecipeError(f"Recipe {recipe}: {e}") from e


def parse_config(values: object, schema: type[T]) -> T:
    """Plain values (of TOML or JSON) -> `schema`, a (nested) dataclass; strict about keys and types.

    Raises:
        RecipeError: naming the key and, for an unknown one, the nearest known.
    """
    try:
        # As JSON, where pydantic can be strict about numbers and still read an array as a tuple.
        return _adapter(schema).validate_json(json.dumps(values, default=str), strict=True)  # type: ignore[arg-type]
    except pydantic.ValidationError as e:
        unknown = [x for x in e.errors() if x["type"] in ("extra_forbidden", "unexpected_keyword_argument")]
        first = (unknown or e.errors())[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        if unknown:
            known = _field_names(schema)
            raise RecipeError(f"unknown key {where!r}; {nearest_names(str(first['loc'][-1]), known)}") from None
        came = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
        raise RecipeError(f"{where}: {first['msg']}{came}") from None


@functools.cache
def _adapter(schema: type[T]) -> pydantic.TypeAdapter[T]:
    """Made once for each schema: that takes far longer than to read a config with it."""
    return pydantic.TypeAdapter(pydantic.with_config(pydantic.ConfigDict(extra="forbid"))(schema))


def toml_value(text: str) -> Any:
    """A value as it is written in TOML (3, true, "3"); what is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _field_names(schema: object) -> set[str]:
    """The keys of a dataclass and of the dataclasses that it nests."""
    if isinstance(schema, type) and dataclasses.is_dataclass(schema):
        hints = get_type_hints(schema)
        return set(hints).union(*map(_field_names, hints.values()))
    return set().union(*map(_field_names, get_args(schema)))
