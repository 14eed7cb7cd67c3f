"""Cells -> rows of one measured value each, and comparisons with their intervals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from d2nwg_init.benchmarks.results import Row, earlier_results
from d2nwg_init.benchmarks.transfer.cells import Cell, Measured, curve_images
from d2nwg_init.benchmarks.transfer.plan import Choices
from d2nwg_init.benchmarks.transfer.statistics import Difference, paired_bootstrap, steps_to_target, with_verdicts
from d2nwg_init.benchmarks.transfer.tables import commits as commits_of
from zoo_builder.errors import RecipeError
from zoo_builder.files import write_text_atomically

Found = Mapping[Cell, Measured]
Key = tuple[str, int | None, str, float | None]  # method, shots, condition, sigma
ByDataset = dict[str, list[tuple[int, Measured]]]  # seeds and what their cells came to
Which = tuple[int | None, str, str]  # shots, method and dataset
Side = tuple[Which, str]  # and the condition
KEYS = ("dataset", "method", "seed", "metric", "step", "epoch", "condition", "shots", "sample", "target", "sigma")
POINTS = ("step/0", "step/10", "step/30", "step/100", "epoch/1", "epoch/10")
TARGETS = {"pretrained_epoch1": "pretrained", "solved_epoch1": "solved"}
RIVALS = ("solved", "pretrained", "refined", "no_generator")  # what every row is compared with


@dataclass(frozen=True)
class TransferRow(Row):
    """A row of transfer.json: what the benchmark adds to the common keys."""

    target: str | None = None  # of `steps_to_target`
    sigma: float | None = None
    strength: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One method against a rival on one dataset, at one point of the training."""

    bundle: str
    split: str
    dataset: str
    method: str
    rival: str
    at: str  # "step/0", ..., "epoch/10"
    shots: int | None
    condition: str
    sigma: float | None
    seeds: int
    difference: float  # points of test accuracy, mean over seeds (and samples)
    low: float  # bounds of one-sided intervals of 95 %
    high: float
    p_win: float
    p_loss: float
    verdict: str  # "win", "loss" or "tie", after Holm's correction over the datasets


def rows_of(found: Found, subject: str, split: str, choices: Choices) -> list[TransferRow]:
    """`test_accuracy` (%), `seconds` (s) and `steps_to_target` of every cell; `best_closed_form` is the head that was
    chosen for its number of shots."""
    rows: list[TransferRow] = []
    for cell, measured in _with_closed_form(found, choices).items():
        about = (subject, cell.dataset, cell.method, cell.seed)
        variant: dict[str, Any] = {
            k: getattr(cell, k) for k in ("condition", "shots", "sample", "sigma", "strength", "learning_rate")
        }

        def add(
            metric: str,
            value: float,
            unit: str,
            at: str = "",
            target: str | None = None,
            about: tuple[str, str, str, int] = about,
            variant: dict[str, Any] = variant,
        ) -> None:
            kind, _, number = at.partition("/")
            step, epoch = (int(number) if kind == wanted else None for wanted in ("step", "epoch"))
            row = TransferRow(*about, metric, round(value, 3), unit, split, step, epoch, target=target, **variant)
            rows.append(row)

        for at in measured.correct:
            add("test_accuracy", measured.accuracy(at), "%", at)
        for at, value in measured.seconds.items():
            add("seconds_initialise" if at == "initialise" else "seconds", value, "s", at)
        for metric, unit in (("peak_bytes", "B"), ("steps", "steps")):
            if metric in measured.notes:
                add(metric, float(measured.notes[metric]), unit)
        for target, method in TARGETS.items() if measured.curve else ():
            goal = _epoch_point(found, cell, method)
            if goal is not None:
                steps = steps_to_target(measured.curve, goal)
                add("steps_to_target", float("nan") if steps is None else steps, "steps", target=target)
    return rows


def _epoch_point(found: Found, cell: Cell, method: str) -> float | None:
    """Where `method` stands after epoch 1, on the same dataset and seed as the cell, and on the images of its curve."""
    for other, measured in found.items():
        if (other.method, other.dataset, other.seed, other.shots) == (method, cell.dataset, cell.seed, cell.shots):
            correct = measured.correct.get("epoch/1")
            return None if correct is None else 100 * float(correct[curve_images(len(correct))].mean())
    return None


def _with_closed_form(found: Found, choices: Choices) -> dict[Cell, Measured]:
    all_cells = dict(found)
    for cell, measured in found.items():
        if cell.shots is not None and choices.closed_form.get(str(cell.shots)) == cell.method:
            all_cells[replace(cell, method="best_closed_form")] = measured
    return all_cells


def compare(found: Found, subject: str, split: str, choices: Choices) -> list[Comparison]:
    """Every method against each of RIVALS, and with few shots against `best_closed_form`, where both were measured."""
    keys: dict[Key, ByDataset] = {}
    for cell, measured in _with_closed_form(found, choices).items():
        key = (cell.method, cell.shots, cell.condition, cell.sigma)
        keys.setdefault(key, {}).setdefault(cell.dataset, []).append((cell.seed, measured))
    names = dict.fromkeys(c.dataset for c in found)
    comparisons = []
    for key in keys:
        method, shots, _, _ = key
        for rival in RIVALS if shots is None else (*RIVALS, "best_closed_form"):
            rival_key = (rival, shots, "right", None)
            if method == rival or rival_key not in keys:
                continue
            for at in POINTS:
                differences = _differences(names, keys[key], keys[rival_key], at)
                comparisons += [
                    Comparison(
                        subject, split, dataset, method, rival, at, shots, key[2], key[3], seeds,
                        round(d.mean, 3), round(d.low, 3), round(d.high, 3), d.p_win, d.p_loss, d.verdict,
                    )
                    for dataset, (seeds, d) in differences.items()
                ]  # fmt: skip
    return comparisons


def _differences(
    datasets: Iterable[str], first: ByDataset, second: ByDataset, at: str
) -> dict[str, tuple[int, Difference]]:
    seeds, differences = {}, {}
    for dataset in datasets:
        a, b = (_correct(of.get(dataset, ()), at) for of in (first, second))
        common = sorted(a.keys() & b.keys())
        if common:
            seeds[dataset] = len(common)
            differences[dataset] = paired_bootstrap([a[s] for s in common], [b[s] for s in common])
    return {name: (seeds[name], d) for name, d in with_verdicts(differences).items()}


def _correct(cells: Iterable[tuple[int, Measured]], at: str) -> dict[int, np.ndarray]:
    """Seed -> [images]: correct or not; of several samples the share of them that is."""
    by_seed: dict[int, list[np.ndarray]] = {}
    for seed, measured in cells:
        if at in measured.correct:
            by_seed.setdefault(seed, []).append(measured.correct[at])
    return {seed: np.mean(values, axis=0) for seed, values in by_seed.items()}


def merge_report(
    file: Path, header: Mapping[str, Any], rows: Sequence[TransferRow], comparisons: Sequence[Comparison]
) -> dict:
    """The object of transfer.json: that of `file`, in which what this run measured is replaced. Of the same subject,
    split, method, dataset, number of shots and condition, rows that it did not measure stay if all that it measured
    again is as it was, by the same protocol; of another bundle of its name nothing stays. A comparison goes where
    either side was measured otherwise. Each run keeps a header of its own."""
    subject, split = rows[0].bundle, rows[0].split
    shots, methods = (list(dict.fromkeys(getattr(r, name) for r in rows)) for name in ("shots", "method"))
    datasets = {r.dataset for r in rows}
    measured = [_without_empty(asdict(r)) for r in rows]
    before = earlier_results(file, "runs", "comparisons", "rows")

    def is_mine(item: dict) -> bool:
        return (item["bundle"], item["split"]) == (subject, split)

    mine = [r for r in before["rows"] if is_mine(r)]
    there, again = ({_which(r) for r in some} for some in (mine, measured))
    of_others: set[Which] = set()  # of another bundle of this name, or measured again by another protocol
    for run in filter(is_mine, before["runs"]):
        its = {(s, m, d) for s, m, d in there if s in shots and s in run["shots"] and m in run["methods"]}
        if run.get("weights_sha256") != header.get("weights_sha256"):
            of_others |= its
        elif run.get("protocol") != header.get("protocol"):
            of_others |= its & again
    then, now = _accuracies(mine), _accuracies(measured)
    otherwise = {
        side
        for side, was in then.items()
        if side[0] in of_others or any(was.get(k, v) != v for k, v in now.get(side, {}).items())
    }
    changed = otherwise | {side for side, was in then.items() if now.get(side, {}).keys() - was.keys()}
    keys = set(map(_key, measured))
    left = [r for r in mine if not (_key(r) in keys or {_side(r), _target_side(r)} & otherwise)]
    compared = [
        c for c in before["comparisons"] if not (is_mine(c) and {_side(c), (_which(c, "rival"), "right")} & changed)
    ]
    new = [asdict(c) for c in comparisons]
    both = {(*_sides(c), c["dataset"]): c for c in (*compared, *new)}
    runs = _runs(before["runs"], is_mine, there - again - of_others, shots, datasets)
    commits = set(header.get("commits", ()))
    for run in filter(is_mine, before["runs"]):
        of_run = itertools.product(run["shots"], run["methods"], (d["name"] for d in run["data"]))
        if again.intersection(of_run, map(_which, left)):
            commits |= set(commits_of(run))
    about = {"bundle": subject, "split": split, "shots": shots, "methods": methods, **header}
    runs.append(about | ({"commits": sorted(commits)} if commits else {}))
    return {
        **{k: v for k, v in header.items() if k != "data"},
        "data": list({d["name"]: d for run in runs for d in run["data"]}.values()),
        "runs": runs,
        "comparisons": _judged(list(both.values()), {_sides(c) for c in new}),
        "rows": [r for r in before["rows"] if not is_mine(r)] + left + measured,
    }


def _runs(
    runs: Sequence[dict], is_mine: Callable[[dict], bool], still: set[Which], shots: Container, datasets: Container
) -> list[dict]:
    """The headers, of which those of this subject and split tell but what is theirs `still`."""
    found = []
    for run in runs:
        if not is_mine(run):
            found.append(run)
            continue
        elsewhere, here = ([d for d in run["data"] if (d["name"] in datasets) is again] for again in (False, True))
        other, again = ([s for s in run["shots"] if (s in shots) is again] for again in (False, True))
        for data, some in ((elsewhere, run["shots"]), (here, other), (here, again)):
            of = list(itertools.product(some, (d["name"] for d in data)))
            left = [m for m in run["methods"] if any((s, m, d) in still for s, d in of)]
            found += [{**run, "shots": some, "methods": left, "data": data}] if left else []
    return found


def check_seeds(file: Path, subject: str, split: str, planned: Iterable[Cell]) -> None:
    """
    Raises:
        RecipeError: `file` holds seeds that `merge_report` would lose, of what is `planned` on fewer.
    """
    coming: dict[Which, set[int]] = {}
    for cell in planned:
        coming.setdefault((cell.shots, cell.method, cell.dataset), set()).add(cell.seed)
    for r in earlier_results(file, "runs", "comparisons", "rows")["rows"]:
        _, method, dataset = which = _which(r)
        if (r["bundle"], r["split"]) == (subject, split) and which in coming and r["seed"] not in coming[which]:
            raise RecipeError(
                f"{file} holds seed {r['seed']} of {method!r} on {dataset!r}, and this run of {len(coming[which])} "
                "seeds would replace it. Give as many --seeds, or another --out."
            )


def _which(item: dict, role: str = "method") -> Which:
    return item["shots"], item[role], item["dataset"]


def _side(item: dict) -> Side:
    return _which(item), item["condition"]


def _target_side(row: dict) -> Side | None:
    """Of the method that a target is taken from."""
    target = row.get("target")
    return ((row["shots"], TARGETS[target], row["dataset"]), "right") if target else None


def _key(row: dict) -> tuple:
    """What a value is of. A rate that was chosen anew does not make it another one."""
    return tuple(row.get(k) for k in KEYS)


def _sides(comparison: dict) -> tuple:
    """What is compared with what, on each dataset."""
    return tuple(comparison[k] for k in ("bundle", "split", "method", "rival", "at", "shots", "condition", "sigma"))


def _judged(comparisons: Sequence[dict], again: Container[tuple]) -> list[dict]:
    """Those of the sides `again`, of which some datasets are new, with verdicts over all of their datasets."""
    differences: dict[tuple, dict[str, Difference]] = {}
    for c in comparisons:
        found = Difference(*(c[k] for k in ("difference", "low", "high", "p_win", "p_loss")))
        differences.setdefault(_sides(c), {})[c["dataset"]] = found
    verdicts = {sides: with_verdicts(of_sides) for sides, of_sides in differences.items() if sides in again}
    return [
        {**c, "verdict": verdicts[_sides(c)][c["dataset"]].verdict} if _sides(c) in verdicts else c for c in comparisons
    ]


def _accuracies(rows: Sequence[dict]) -> dict[Side, dict[tuple, float]]:
    """All that was measured."""
    keys = ("seed", "step", "epoch", "sample", "sigma")
    found: dict[Side, dict[tuple, float]] = {}
    for r in rows:
        if r["metric"] == "test_accuracy":
            found.setdefault(_side(r), {})[tuple(r.get(k) for k in keys)] = r["value"]
    return found


SPARSE = ("sample", "device", "target", "sigma", "strength", "learning_rate")  # left out of a row where they are None


def _without_empty(row: dict) -> dict:
    """As JSON has it: NaN, a target that was never reached, is null."""
    row = {k: None if v != v else v for k, v in row.items()}
    return {k: v for k, v in row.items() if v is not None or k not in SPARSE}


def write_report(file: Path, report: dict) -> None:
    """One line for each row and comparison, so that a difference of two versions can be read."""
    lists = {k: report[k] for k in ("comparisons", "rows") if k in report}
    head = json.dumps({k: v for k, v in report.items() if k not in lists}, indent=1)[:-2]
    parts = [f' "{k}": [\n' + ",\n".join("  " + json.dumps(i) for i in items) + "\n ]" for k, items in lists.items()]
    write_text_atomically(file, head + ",\n" + ",\n".join(parts) + "\n}\n")
