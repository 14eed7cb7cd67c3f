"""A dataset of the Hugging Face Hub at a pinned revision, or a folder laid out like one; its Parquet files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zoo_builder.datasets.image_dataset import ImageDataset
from zoo_builder.datasets.read_images import TEST_PARTS, Sample, assemble, read_part
from zoo_builder.errors import DataError, nearest_names

FILES = ["*.parquet", "**/*.parquet", "README.md"]  # nothing of a repository runs
# What else may lie in a local folder; the library also reads formats that run what is in them.
HARMLESS = (".parquet", ".md", ".txt", ".gitattributes", "")
LABELS = ("string", "large_string", "int", "uint", "float", "bool")  # how their types begin, as Arrow calls them


def load_hugging_face(
    name: str, arguments: dict[str, str], root: Path, size: int, max_images: int | None, download: bool
) -> ImageDataset:
    """`ORG/NAME@REVISION` from the Hub's cache (or fetched, with `download`), or a local folder of Parquet files.

    Arguments: `config`; `image` and `label`, the columns, where there are several that could be.

    Raises:
        DataError: no revision, not there, a card that is no YAML, or no columns of images and labels.
    """
    try:
        import datasets
        import yaml
        from datasets.exceptions import DatasetGenerationError
    except ImportError as e:
        raise DataError(f"hf:{name} needs the library datasets. Install it with: pip install 'd2nwg-init[zoo]'") from e

    unknown = arguments.keys() - {"config", "image", "label"}
    if unknown:
        raise DataError(f"hf:{name}: unknown {sorted(unknown)}; known: config, image, label.")
    folder = next((p for p in (root / name, Path(name)) if p.is_dir()), None) or _snapshot(name, download)
    strange = sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in HARMLESS)
    if strange:
        raise DataError(f"hf:{name} holds {', '.join(strange[:5])}; expected Parquet files alone. Move them elsewhere.")
    try:
        card = _card(folder)
        if elsewhere := _elsewhere(card.get("configs")):
            raise DataError(
                f"hf:{name} has a card that takes data from {elsewhere!r}, which is not in it. Expected paths and "
                "patterns inside: take another dataset, or mend data_files in its README.md."
            )
        found = datasets.load_dataset(str(folder), arguments.get("config"))
    except yaml.YAMLError as e:
        raise DataError(f"hf:{name} has a card, README.md, whose YAML cannot be read ({e}). Mend it there.") from e
    except (OSError, ValueError, DatasetGenerationError) as e:
        raise DataError(f"hf:{name} is not a dataset of Parquet files ({e}).") from e
    if "train" not in found:
        raise DataError(f"hf:{name} has the splits {sorted(found)}, expected train among them.")
    features = found["train"].features
    image = _column(name, "image", arguments, features, lambda f: isinstance(f, datasets.Image))
    label = _column(name, "label", arguments, features, lambda f: isinstance(f, datasets.ClassLabel))
    _check_kinds(name, features, image, label)
    labels = {split: found[split][label][:] for split in ("train", *TEST_PARTS) if split in found}
    named = isinstance(features[label], datasets.ClassLabel)
    # -1 is how the Hub marks an image without a label; in a column of numbers it may be one of two classes.
    unlabelled = {None, -1} if named or -1 not in labels["train"] else {None}
    labelled = {s: [i for i, v in enumerate(of) if v not in unlabelled and v == v] for s, of in labels.items()}
    splits = ["train", *[s for s in TEST_PARTS if labelled.get(s)][:1]]
    # Of all splits together: one that lacks a class must not number the others anew.
    values = [] if named else sorted({labels[split][i] for split in splits for i in labelled[split]})
    classes = features[label].names if named else [str(value) for value in values]
    number = {value: i for i, value in enumerate(values)}
    parts = []
    for split in splits:
        rows = found[split].select(labelled[split]).select_columns([image, label])
        rows = rows.cast_column(image, datasets.Image(decode=False))

        def get(i: int, rows: Any = rows, split: str = split) -> Sample:
            row = rows[i]
            contents = (row[image] or {}).get("bytes") or b""  # none is broken too
            return Sample(f"{split} image {i}", number.get(row[label], row[label]), contents)

        parts.append(read_part(get, len(rows), size, max_images))
    test = parts[1] if len(parts) > 1 else None
    return assemble(f"hf:{name}", parts[0], test, classes, f"hf:{name}", _licence(card))


def _check_kinds(name: str, features: Any, image: str, label: str) -> None:
    """
    Raises:
        DataError: the one column holds no image files, or the other neither numbers nor names.
    """
    from datasets import ClassLabel, Image, Value

    files = features[image]
    stored = isinstance(files, Value) and files.dtype.endswith("binary")
    if not (stored or isinstance(files, Image) or (isinstance(files, dict) and "bytes" in files)):
        raise DataError(f"hf:{name}: the column {image!r} holds {files}, expected images. {_name_it(name, 'image')}")
    kind = features[label]
    plain = isinstance(kind, Value) and kind.dtype.startswith(LABELS)
    if not (plain or isinstance(kind, ClassLabel)):
        raise DataError(
            f"hf:{name}: the column {label!r} holds {kind}, expected numbers or names of classes. "
            f"{_name_it(name, 'label')}"
        )


def _name_it(name: str, what: str) -> str:
    return f"Write the column behind the name, as in hf:{name}?{what}=COLUMN."


def _snapshot(name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, at, revision = name.partition("@")
    if not at or not revision:
        raise DataError(f"hf:{name} must be pinned, as hf:{repo}@COMMIT, or name a local folder of Parquet files.")
    try:
        return Path(
            snapshot_download(
                repo, repo_type="dataset", revision=revision, allow_patterns=FILES, local_files_only=not download
            )
        )
    except LocalEntryNotFoundError as e:
        raise DataError(f"hf:{name} is not in the cache. Ask for a download (--download). ({e})") from e
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        raise DataError(f"hf:{name} cannot be fetched ({e}).") from e


def _column(name: str, what: str, arguments: dict[str, str], features: Any, fits: Any) -> str:
    """The column that is asked for, or the only one that fits, or the one that is called so."""
    if what in arguments:
        if arguments[what] not in features:
            raise DataError(f"hf:{name} has no column {arguments[what]!r}; {nearest_names(arguments[what], features)}")
        return arguments[what]
    columns = [column for column, feature in features.items() if fits(feature)]
    if len(columns) != 1 and what in features:
        return what
    if len(columns) != 1:
        raise DataError(f"hf:{name}: which column is the {what}? It has {', '.join(features)}. {_name_it(name, what)}")
    return columns[0]


def _card(folder: Path) -> dict[str, Any]:
    """What the head of README.md says."""
    from huggingface_hub import DatasetCard

    card = folder / "README.md"
    return DatasetCard.load(card).data.to_dict() if card.exists() else {}


def _elsewhere(data_files: Any) -> str | None:
    """A path of a card's configs that leads out of the repository: to this machine's other files, or to any URL."""
    if isinstance(data_files, dict):
        data_files = [data_files.get(key) for key in ("data_files", "data_dir", "path")]
    if isinstance(data_files, list):
        return next(filter(None, map(_elsewhere, data_files)), None)
    if not isinstance(data_files, str):
        return None
    path = PurePosixPath(data_files.replace("\\", "/"))
    leads_out = path.is_absolute() or data_files.startswith("~") or ".." in path.parts or ":" in data_files
    return data_files if leads_out else None


def _licence(card: Mapping[str, Any]) -> str:
    licence = card.get("license")
    return ", ".join(licence) if isinstance(licence, list) else str(licence or "unknown")
