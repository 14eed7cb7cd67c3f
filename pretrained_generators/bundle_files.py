"""The files of a bundle's folder against what its config.json says of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo_builder.errors import BundleError

CONFIG, WEIGHTS, CARD, RESULTS = "config.json", "generator.safetensors", "README.md", "results.json"
STATISTICS = "datasets.safetensors"  # what its datasets look like
SAID_OF_WEIGHTS = (CARD, RESULTS, "audit.json", "audit.svg", "metrics.jsonl", "training.svg")  # and of no others
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(safetensors|md|jsonl?|svg|png)")
BESIDE = (".cache", ".git", ".gitattributes", ".eval_results")  # of git, the Hub and its client; never opened
MAX_FILES = 32
MAX_BYTES = 2**31  # of all files; a generator is far smaller
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BundleFile:
    name: str  # in the folder itself
    bytes: int
    sha256: str


def recorded(folder: Path) -> tuple[BundleFile, ...]:
    """What there is that may be part of a bundle, as it is."""
    paths = [p for p in sorted(folder.iterdir()) if p.name != CONFIG and _may_be_part(p)]
    return tuple(BundleFile(p.name, p.stat().st_size, file_sha256(p)) for p in paths)


def described(contents: Mapping[str, bytes]) -> tuple[BundleFile, ...]:
    """Files that are yet to be written, by name."""
    return tuple(BundleFile(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in contents.items())


def _may_be_part(path: Path) -> bool:
    return FILE_NAME.fullmatch(path.name) is not None and path.is_file()


def check_list(files: Sequence[BundleFile]) -> None:
    """The list itself, before any of its files is looked for.

    Raises:
        ValueError: a name that leaves the folder or is there twice, no weights, no hash, or too much of anything.
    """
    names = [f.name for f in files]
    strange = [n for n in names if n == CONFIG or not FILE_NAME.fullmatch(n)]
    if strange:
        raise ValueError(f"files: {strange[0]!r} is no name of a file in a bundle")
    if WEIGHTS not in names or len(set(names)) < len(names) or len(names) > MAX_FILES:
        raise ValueError(f"files: expected {WEIGHTS} and at most {MAX_FILES - 1} more, each once")
    if not all(SHA256.fullmatch(f.sha256) for f in files):
        raise ValueError("files: a SHA-256 is not 64 hexadecimal digits")
    if min(f.bytes for f in files) < 0 or sum(f.bytes for f in files) > MAX_BYTES:
        raise ValueError(f"files: expected at most {MAX_BYTES} bytes in all")


def check_files(folder: Path, files: Sequence[BundleFile], blobs: Path | None = None) -> None:
    """Every file is there with its size and hash, none is a link, and nothing else is there.

    `blobs` is for a folder of the Hub's cache, whose files are links: they may lead there and nowhere else, and what a
    repository holds beside its bundle is left alone.

    Raises:
        BundleError: naming the first file that is not as it should be.
    """
    if blobs is None:
        known = {CONFIG, *BESIDE, *(f.name for f in files)}
        strange = sorted(p.name for p in folder.iterdir() if p.name not in known)
        if strange:
            mend = (
                f"; or, if it belongs to the bundle and you trust it, record it: d2nwg-init bundle card {folder}"
                if _may_be_part(folder / strange[0])
                else "."
            )
            raise BundleError(
                f"{folder} holds {strange[0]!r}, which its config.json does not know. Move it elsewhere{mend}"
            )
    for name in (CONFIG, *(f.name for f in files)):
        check_no_link(folder / name, blobs)
    for file in files:
        path = folder / file.name
        if not path.is_file():
            raise BundleError(f"{path} is missing or is no file. Get the bundle again.")
        if path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
            mend = (
                f"Get the bundle again; or, if you changed it yourself, record it: d2nwg-init bundle card {folder}"
                if blobs is None
                else "Fetch it anew: d2nwg-init bundle pull ORG/NAME --force"
            )
            raise BundleError(f"{path} is not the file that config.json describes (size and SHA-256). {mend}")


def check_no_link(path: Path, blobs: Path | None = None) -> None:
    """Neither a symbolic link nor, in the Hub's cache, one that leads elsewhere than into `blobs`."""
    if path.is_symlink() and (blobs is None or blobs.resolve() not in path.resolve().parents):
        raise BundleError(f"{path} is a symbolic link. A bundle holds its files themselves; get it again.")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
