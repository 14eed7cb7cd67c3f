"""One schema for all that is measured: a header with what is needed to measure it again, and long-format rows."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pretrained_generators.bundle_config import BundleConfig
from zoo_builder.datasets import ImageDataset
from zoo_builder.errors import D2NWGError
from zoo_builder.files import write_text_atomically
from zoo_builder.versions import versions

SOURCE = (":/", ":(exclude,top)docs/results")  # as git names paths
AS_IT_IS = "as it is"  # no choice is made otherwise


@dataclass(frozen=True)
class Row:
    """One measured value."""

    bundle: str
    dataset: str
    method: str
    seed: int
    metric: str
    value: float
    unit: str
    split: str | None = None  # "development", "held_out", "in_distribution", "zoo" (its own datasets); None is none
    step: int | None = None
    epoch: int | None = None
    condition: str | None = None
    shots: int | None = None
    sample: int | None = None
    device: str | None = None  # "cpu" or "cuda", where it matters


@dataclass(frozen=True)
class ChoiceRow(Row):
    """A value measured with one choice made otherwise."""

    choice: str = AS_IT_IS


def results(
    name: str, datasets: Iterable[ImageDataset], rows: Sequence[Row], bundle: BundleConfig | None = None
) -> dict[str, object]:
    """The object that `--json` prints and docs/results/NAME.json holds; of one bundle, it tells which one."""
    return (
        header(name)
        | (bundle.identity if bundle else {})
        | {
            "data": [{"name": d.name, "origin": d.origin, "sha256": d.sha256} for d in datasets],
            "rows": [asdict(r) for r in rows],
        }
    )


def deliver(report: dict[str, object], out: Path | None, as_json: bool) -> bool:
    """Write the object to `out`, if there is one, and print it, if it is asked for; whether it was printed."""
    if out:
        write_text_atomically(out, json.dumps(report, indent=1) + "\n")
    if as_json:
        print(json.dumps(report))
    return as_json


def read_results(file: Path, holds: Mapping[str, type], advice: str) -> dict[str, Any]:
    """The object that a file of results holds.

    Raises:
        D2NWGError: it is no JSON object, or a key of what it `holds` is not there, or of another type.
    """
    try:
        found = json.loads(file.read_text())
        for key, kind in holds.items():
            if not isinstance(found[key], kind):
                raise TypeError(f"{key!r} is no {kind.__name__}")
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise D2NWGError(
            f"{file} does not hold results, a JSON object with {', '.join(holds)} ({e!r}). {advice}"
        ) from e
    return found


def earlier_results(file: Path, *lists: str) -> dict[str, Any]:
    """Those that a run adds to; empty if there are none yet.

    Raises:
        D2NWGError: the file is damaged.
    """
    if not file.exists():
        return {key: [] for key in lists}
    advice = "Restore it, or remove it: then what it held of other runs is lost."
    return read_results(file, dict.fromkeys(lists, list), advice)


def header(name: str) -> dict[str, object]:
    """What was run, on which machine, with which versions."""
    return {
        "schema": 1,
        "name": name,
        "command": _command(),
        "commit": source_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": versions(),
    }


def _command() -> str:
    """As it was typed, with the data folder of the environment variable D2NWG_DATA, and what lies in it, by that
    name."""
    data = os.environ.get("D2NWG_DATA", "").rstrip("/")

    def named(argument: str) -> str:
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        inside = data and (value + "/").startswith(data + "/")
        return f"{option}{equals}$D2NWG_DATA{value[len(data) :]}" if inside else argument

    return " ".join(["d2nwg-init", *map(named, sys.argv[1:])])


def source_state() -> str | None:
    """source_commit(), and where the source was changed, how."""
    commit = source_commit()
    if commit and commit.endswith("-dirty"):
        return f"{commit}-{hashlib.sha256(_git('diff', 'HEAD', '--', *SOURCE).encode()).hexdigest()[:10]}"
    return commit


@functools.cache
def source_commit() -> str | None:
    """The commit that this package's source stands at, "-dirty" where it was changed; None outside a checkout. Results
    that an earlier run left beside it change nothing that is measured. Looked up once: a process goes on with the code
    that it began with."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *SOURCE)
        return _git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
