"""What a results file of this project says of a bundle: kept beside it as results.json, and drawn into its card."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult

from pretrained_generators.bundle_config import BundleConfig
from zoo_builder.checkpoint import write_text_atomically
from zoo_builder.errors import BundleError

FILE = "results.json"
METHODS = {  # the rivals first
    "scratch": "random initialisation",
    "pretrained": "the base checkpoint, a fresh head",
    "solved": "the base, BatchNorm recalibrated, a head in closed form, from the same images",
    "no_generator": "the same choice as below without generated weights",
    "generated_mean": "the mean over samples, none chosen",
    "initialize": "what the user gets",
}


@dataclass(frozen=True)
class DatasetResult:
    dataset: str
    steps: tuple[int, ...]
    accuracy: dict[str, tuple[float, ...]]  # method -> test accuracy (%) at each step, mean over seeds
    seconds: float | None  # that initialize took, mean over seeds


@dataclass(frozen=True)
class BundleResults:
    command: str
    commit: str
    machine: str
    seeds: int
    datasets: tuple[DatasetResult, ...]

    def eval_results(self) -> list[EvalResult]:
        """For the model-index: each method before any training, on each dataset."""
        return [
            EvalResult(
                task_type="image-classification",
                dataset_type=d.dataset,
                dataset_name=d.dataset,
                dataset_split="test",
                metric_type="accuracy",
                metric_name=f"{method}, before any training (%)",
                metric_value=round(values[0], 2),
            )
            for d in self.datasets
            for method, values in d.accuracy.items()
        ]


def keep_results(path: Path, config: BundleConfig, folder: Path) -> None:
    """Keep of a results file (demo.json, transfer.json) what it says of this bundle on datasets that it never saw.

    Raises:
        BundleError: it is not there, is no results file, or says nothing of it.
    """
    seen = {t.name for t in config.trained_on}
    try:
        report = json.loads(path.read_text())
        rows = [r for r in report["rows"] if r["bundle"] == config.name and r["dataset"] not in seen]
        kept = {k: report[k] for k in ("schema", "name", "command", "commit", "date", "machine", "versions")}
        measured = any(r["method"] == "initialize" for r in rows)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BundleError(f"{path} holds no results ({e!r}). Expected a file that demo or bench wrote.") from e
    if not measured:
        raise BundleError(
            f"These results have no row of `initialize` with the bundle {config.name!r} on a dataset that it was not "
            "trained on. Measure it: d2nwg-init demo, or bench transfer."
        )
    told = [{k: v for k, v in r.items() if v is not None} for r in rows]
    write_text_atomically(folder / FILE, json.dumps(kept | {"rows": told}, indent=1) + "\n")


def read_results(folder: Path) -> BundleResults | None:
    """What `keep_results` kept; None where nothing was."""
    if not (folder / FILE).exists():
        return None
    report = json.loads((folder / FILE).read_text())
    rows = [r for r in report["rows"] if r.get("condition") in (None, "right") and r.get("shots") is None]
    names = dict.fromkeys(r["dataset"] for r in rows)
    gpu = report["machine"].get("gpu")
    return BundleResults(
        report["command"],
        report["commit"] or "unknown",
        gpu or f"{report['machine']['cores']} CPU cores",
        len({r["seed"] for r in rows}),
        tuple(_of_dataset(name, [r for r in rows if r["dataset"] == name]) for name in names),
    )


def _of_dataset(name: str, rows: Sequence[dict[str, Any]]) -> DatasetResult:
    found: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for r in rows:
        if r["metric"] == "test_accuracy" and "step" in r and r["method"] in METHODS:
            found[r["method"], r["step"]].append(r["value"])
    steps = tuple(sorted({step for _, step in found}))
    accuracy = {
        method: tuple(mean(found[method, step]) for step in steps)
        for method in METHODS
        if all((method, step) in found for step in steps)
    }
    took = [r["value"] for r in rows if r["method"] == "initialize" and r["metric"] == "seconds_initialise"]
    return DatasetResult(name, steps, accuracy, mean(took) if took else None)
