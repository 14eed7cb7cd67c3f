"""What a results file of this project says of a bundle: kept beside it as results.json, and drawn into its card."""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult

from pretrained_generators.bundle_config import BundleConfig, check_plain, config_text, with_files
from pretrained_generators.bundle_files import CARD, RESULTS
from zoo_builder.datasets.same_dataset import is_among
from zoo_builder.errors import BundleError
from zoo_builder.files import write_bytes

MAX_BYTES = 2**24  # of a JSON file that the card tells from
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # of any JSON
KEPT = ("test_accuracy", "steps_to_target")  # of every method; of initialize what it costs too
HEADER = ("schema", "name", "command", "commit", "date", "machine", "versions")
RUN = ("command", "commit", "commits", "date", "machine", "versions", "split", "shots", "methods")  # of many
METHODS = {  # the rivals first
    "scratch": "random initialisation",
    "pretrained": "the base checkpoint, a fresh head",
    "solved": "the base, BatchNorm recalibrated, a head in closed form, from the same images",
    "rescaled": "the same with BatchNorm rescaled",
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
    origin: str | None  # where the dataset says it comes from

    @property
    def before_training(self) -> dict[str, float]:
        """Method -> test accuracy (%) at step 0."""
        return {m: values[0] for m, values in self.accuracy.items()} if self.steps[:1] == (0,) else {}


@dataclass(frozen=True)
class BundleResults:
    commits: tuple[str, ...]
    date: str  # ISO 8601
    machine: str
    seeds: int
    datasets: tuple[DatasetResult, ...]
    development: tuple[str, ...] = ()  # those of the datasets that the method was developed on

    @property
    def measured(self) -> bool:
        return any("initialize" in d.accuracy for d in self.datasets)

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
                metric_value=round(value, 2),
            )
            for d in self.datasets
            for method, value in d.before_training.items()
        ]


def keep_results(path: Path, config: BundleConfig, folder: Path) -> None:
    """Keep of a results file (demo.json, transfer.json) what it says of this bundle on datasets that it never saw.

    Raises:
        BundleError: it is not there, is no results file, says nothing of it, is of other weights or does not tell of
            which, or the folder has too many files. Nothing was written.
    """
    try:
        report = json.loads(path.read_text())
        rows = [r for r in report["rows"] if r["bundle"] == config.name and not is_among(r["dataset"], config.seen)]
        names = {r["dataset"] for r in rows}
        runs = [r for r in report["runs"] if r["bundle"] == config.name] if "runs" in report else [report]
        told = [{k: r.get(k) for k in config.identity} for r in runs]
        rows = [r for r in rows if r["metric"] in KEPT or r["method"] == "initialize"]
        kept = {k: report[k] for k in HEADER}
        if "runs" in report:  # its header is that of the last run, of any bundle
            of_rows = [run for run in runs if any(_is_of(row, run) for row in rows)]
            last = max(of_rows, key=lambda run: str(run["date"]), default=report)
            kept = {k: last[k] for k in HEADER}
            kept["runs"] = [{k: run[k] for k in RUN if k in run} for run in of_rows]
        kept |= told[0] if told else {}
        kept["data"] = [d for d in report["data"] if d["name"] in names]
        kept["rows"] = [{k: v for k, v in r.items() if v is not None} for r in rows]
        measured = _parse(kept).measured
    except UNREADABLE as e:
        raise BundleError(f"{path} holds no results ({e!r}). Expected a file that demo or bench wrote.") from e
    if not measured:
        raise BundleError(
            f"These results have no row of `initialize` with the bundle {config.name!r} on a dataset that it was not "
            "trained on. Measure it: d2nwg-init demo, or bench transfer."
        )
    for run in told:
        _check_weights(run, config, path)
    contents = f"{json.dumps(kept)}\n".encode()
    config_text(with_files(config, folder, {RESULTS: contents, CARD: b""}))  # raises where there are too many files
    write_bytes(folder / RESULTS, contents)


def read_results(folder: Path, config: BundleConfig) -> BundleResults | None:
    """What `keep_results` kept; None where nothing was. Earlier versions kept nothing that tells the weights.

    Raises:
        BundleError: it is not what this project writes (it may be a stranger's), or of other weights.
    """
    if not (folder / RESULTS).exists():
        return None
    try:
        report = read_json(folder / RESULTS)
        results = _parse(report)
        if not results.measured:
            raise ValueError("no test accuracy of `initialize`")
    except UNREADABLE as e:
        raise BundleError(f"{folder / RESULTS} cannot be read ({e!r}). Remove it, or measure again.") from e
    if report.get("weights_sha256") is not None:
        _check_weights(report, config, folder / RESULTS)
    return results


def _check_weights(told: dict[str, Any], config: BundleConfig, path: Path) -> None:
    """
    Raises:
        BundleError: what is `told` in the results of `path` are other weights than those of `config`. A bundle without
            its base is measured as the one of the same training that holds it.
    """
    sha256, trained_with = told.get("weights_sha256"), told.get("trained_with")
    same_training = trained_with is not None and trained_with == config.trained_with
    if sha256 == config.weights_sha256 or (config.base_elsewhere and same_training):
        return
    of = "do not tell of which weights they are" if sha256 is None else f"are of the weights {sha256!r:.12}..."
    raise BundleError(
        f"The results in {path} {of}; those of the bundle {config.name!r} are {config.weights_sha256[:10]}... Measure "
        "these: d2nwg-init demo --bundle FOLDER --out results.json, or bench transfer."
    )


def read_json(path: Path) -> Any:
    """Of a file that may be anything. Raises one of UNREADABLE."""
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} bytes")
    return json.loads(text)


def _is_of(row: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether one of many runs measured a row of its bundle."""
    alike = (
        row.get("split") == run.get("split") and row.get("shots") in run["shots"] and row["method"] in run["methods"]
    )
    return alike and any(d["name"] == row["dataset"] for d in run["data"])


def _parse(report: Any) -> BundleResults:
    """Plain text, and numbers that are finite; else one of UNREADABLE."""
    rows = [r for r in report["rows"] if r.get("condition") in (None, "right") and r.get("shots") is None]
    by_dataset: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in rows:
        by_dataset[str(r["dataset"])].append(r)
    origins = {d["name"]: str(d["origin"]) for d in report.get("data", ())}  # none in files of earlier versions
    datasets = tuple(_of_dataset(name, of_it, origins.get(name)) for name, of_it in by_dataset.items())
    runs = [report]
    if "runs" in report:  # those of what the card shows; none in files of earlier versions
        of_card = ((d, r) for d in datasets for r in by_dataset[d.dataset])
        shown = {(r.get("split"), r["method"]) for d, r in of_card if r["method"] in d.accuracy}
        all_images = [run for run in report["runs"] if None in run["shots"]]
        runs = [run for run in all_images if any((run.get("split"), m) in shown for m in run["methods"])]
        if shown and not runs:
            raise ValueError("no run that its rows are of")
    commits = [str(c or "unknown") for run in runs for c in run.get("commits") or [run["commit"]]]
    results = BundleResults(
        tuple(dict.fromkeys(commits)),
        datetime.datetime.fromisoformat(report["date"]).isoformat(),
        " and ".join(dict.fromkeys(_machine(run["machine"]) for run in runs)),
        len({r["seed"] for r in rows}),
        datasets,
        tuple(d.dataset for d in datasets if any(r.get("split") == "development" for r in by_dataset[d.dataset])),
    )
    check_plain(asdict(results))
    return results


def _machine(told: dict[str, Any]) -> str:
    return str(told.get("gpu") or f"{told['cores']} CPU cores")


def _of_dataset(name: str, rows: Sequence[dict[str, Any]], origin: str | None) -> DatasetResult:
    found: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for r in rows:
        if r["metric"] == "test_accuracy" and "step" in r and r["method"] in METHODS:
            found[r["method"], int(r["step"])].append(float(r["value"]))
    steps = tuple(sorted({step for _, step in found}))
    accuracy = {
        method: tuple(mean(found[method, step]) for step in steps)
        for method in METHODS
        if steps and all((method, step) in found for step in steps)
    }
    took = [float(r["value"]) for r in rows if r["method"] == "initialize" and r["metric"] == "seconds_initialise"]
    return DatasetResult(name, steps, accuracy, mean(took) if took else None, origin)
