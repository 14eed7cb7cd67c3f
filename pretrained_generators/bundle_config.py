"""config.json of a bundle: its schema, its format's version, and what is refused before anything else is looked at.

The format is written down in docs/bundle-format.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrained_generators.base_elsewhere import BaseElsewhere
from pretrained_generators.bundle_files import (
    CARD,
    CONFIG,
    RESULTS,
    SHA256,
    WEIGHTS,
    BundleFile,
    check_list,
    described,
    recorded,
)
from pretrained_generators.generator import GeneratorConfig
from pretrained_generators.licences import permits_commercial_use
from zoo_builder.errors import BundleError, RecipeError
from zoo_builder.recipe import parse_config

FORMAT = 2  # of bundles; it has nothing to do with the package's version
READABLE_SINCE = "0.1.0"  # the first version of d2nwg-init that reads FORMAT
MAX_CONFIG_BYTES = 2**20
ROOM = 2**14  # bytes of it for what is known last: files, exponents of the blocks, what was measured
MAX_TEXT = 1000  # characters of any string
MAX_NUMBER = 2**63  # of any integer, and of the numbers that a layout has; one of thousands of digits cannot be printed


@dataclass(frozen=True)
class TrainedOn:
    name: str
    entries: int
    licence: str = "unknown"


@dataclass(frozen=True)
class BundleConfig:
    name: str
    generator: GeneratorConfig
    files: tuple[BundleFile, ...]  # all of the folder but config.json
    trained_on: tuple[TrainedOn, ...]  # datasets of the zoo with the number of their entries
    held_out: tuple[str, ...]  # never trained on
    base_sha256: str  # of the base checkpoint that the zoo was built from
    base_pretrained_on: str  # datasets, joined by commas
    base_licence: str = "unknown"
    base_elsewhere: BaseElsewhere | None = None  # None: the bundle holds it
    measured: dict[str, float] = field(default_factory=dict)  # what training measured, see the card
    learnt: tuple[str, ...] = ()  # ids of the zoo's entries that it was trained on
    kept_back: tuple[str, ...] = ()  # ids of those that were kept out, to measure on
    zoo_sha256: str | None = None  # of the files of `learnt`, see `files_sha256`: a zoo may be built again
    trained_with: str | None = None  # SHA-256 of recipe, base, its fit and entries; equal: the same training
    format: int = FORMAT
    readable_since: str = READABLE_SINCE

    @property
    def seen(self) -> tuple[str, ...]:
        """Names of all datasets that had a part in its weights, and in those of its base."""
        return (*self.base_pretrained_on.split(", "), *(t.name for t in self.trained_on))

    @property
    def weights_sha256(self) -> str:
        return next(f.sha256 for f in self.files if f.name == WEIGHTS)

    @property
    def identity(self) -> dict[str, str | None]:
        """What results tell of the weights that they are of: a name can be another bundle's too."""
        return {"weights_sha256": self.weights_sha256, "trained_with": self.trained_with}

    @property
    def has_card(self) -> bool:
        """Whether there is a model card, which tells results; without these it is none."""
        return {CARD, RESULTS} <= {f.name for f in self.files}

    @property
    def commercial(self) -> bool:
        """Whether the licences of all that it was trained on allow commercial use; one that is not known does not."""
        licences = [self.base_licence, *(t.licence for t in self.trained_on)]
        return all(permits_commercial_use(licence) for licence in licences)


def with_files(
    config: BundleConfig, folder: Path, coming: Mapping[str, bytes], gone: Collection[str] = ()
) -> BundleConfig:
    """`config` with every file that `folder` will have, once `coming` is written and what is `gone` removed."""
    files = {f.name: f for f in (*recorded(folder), *described(coming)) if f.name not in gone}
    return replace(config, files=tuple(files[name] for name in sorted(files)))


def config_text(config: BundleConfig) -> str:
    """What config.json holds.

    Raises:
        BundleError: it could not be read again.
    """
    text = json.dumps(asdict(config), indent=1)
    try:
        _checked(_values(text.encode()))
    except (ValueError, RecipeError) as e:
        raise _cannot_be_told(config.name, e) from e
    return text


def check_can_be_told(about: Mapping[str, Any]) -> None:
    """Of the fields of a config, as in JSON, without its files and what was measured.

    Raises:
        BundleError: it could not be read again.
    """
    try:
        _values(json.dumps(about, indent=1).encode(), MAX_CONFIG_BYTES - ROOM)
    except ValueError as e:
        raise _cannot_be_told(about["name"], e) from e


def _cannot_be_told(name: object, why: Exception) -> BundleError:
    return BundleError(
        f"What the bundle {name!r} should say of itself cannot be stored: {why}. Names are those of the recipe and of "
        "the zoo's datasets, licences those that the zoo was built with; a zoo of fewer entries takes less room, and "
        "files of the folder that are no part of the bundle take none elsewhere."
    )


def read_config(path: Path) -> BundleConfig:
    """The checked contents of a config.json; a format-1 one as if it were of the present format.

    Raises:
        BundleError: not there, too long, not JSON, of a newer format, or not by the schema.
    """
    try:
        with path.open("rb") as file:
            values = _values(file.read(MAX_CONFIG_BYTES + 1))
        if isinstance(values, dict):
            _check_format(values, path)
            if values["format"] == 1:
                values = _from_format_1(values, path.parent)
        return _checked(values)
    except (OSError, ValueError, RecursionError, RecipeError) as e:
        raise BundleError(f"{path} is not a bundle's config ({e}). Get the bundle again.") from e


def _values(text: bytes, most: int = MAX_CONFIG_BYTES) -> Any:
    """JSON that is plain and not too long, or a ValueError."""
    if len(text) > most:
        raise ValueError(f"longer than {most} bytes")
    values = json.loads(text, parse_constant=_refuse)
    check_plain(values)
    return values


def _checked(values: object) -> BundleConfig:
    """Values by the schema, or a ValueError or RecipeError."""
    config = parse_config(values, BundleConfig)
    check_list(config.files)
    if config.generator.layout.size >= MAX_NUMBER:
        raise ValueError("generator.layout: its shapes have more numbers than any file")
    if config.base_elsewhere and not SHA256.fullmatch(config.base_elsewhere.sha256):
        raise ValueError("base_elsewhere: its SHA-256 is not 64 hexadecimal digits")
    return config


def _refuse(number: str) -> None:
    raise ValueError(f"{number} is no number of JSON")


def _check_format(values: dict[str, Any], path: Path) -> None:
    found, since = values.get("format"), values.get("readable_since")
    if type(found) is not int or found < 1:
        raise ValueError(f"format: expected a number from 1 on, got {found!r:.40}")
    if found <= FORMAT:
        return
    known = isinstance(since, str) and re.fullmatch(r"[0-9]+(\.[0-9A-Za-z]+){1,4}", since)
    wanted = f"'d2nwg-init>={since}'" if known else "d2nwg-init"
    raise BundleError(f"{path} has bundle format {found}, and this version of d2nwg-init reads formats up to {FORMAT}. "
                      f"Upgrade: pip install -U {wanted}")  # fmt: skip


def _from_format_1(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Format 1 knew the hash of the weights alone, and always held the base; its other files count as they are.

    Raises:
        BundleError: they are not there, as where config.json alone was fetched.
    """
    if not (folder / WEIGHTS).is_file():
        raise BundleError(
            f"{folder} has a {CONFIG} of bundle format 1, which does not name its files, and no {WEIGHTS} beside it. "
            "Get the whole folder and give that; from the Hub: hf download ORG/NAME --local-dir FOLDER"
        )
    files = [asdict(f) for f in recorded(folder)]
    for file in files:
        if file["name"] == WEIGHTS:
            file["sha256"] = values.get("weights_sha256")
    return {k: v for k, v in values.items() if k not in ("weights_sha256", "format")} | {"files": files}


def check_plain(values: object) -> None:
    """Text that cannot harm a terminal, on one line, and numbers that are finite and, if whole, of 64 bits.

    Raises:
        ValueError: naming the first that is neither.
    """
    for value in _leaves(values):
        if isinstance(value, str) and not (len(value) <= MAX_TEXT and value.isprintable()):
            raise ValueError(f"a text is longer than {MAX_TEXT} characters or not printable: {value[:40]!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is infinite")
        if isinstance(value, int) and abs(value) >= MAX_NUMBER:
            raise ValueError(f"a number has {value.bit_length()} bits; expected at most 63")


def _leaves(values: object) -> Iterator[object]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield key
            yield from _leaves(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _leaves(value)
    else:
        yield values
