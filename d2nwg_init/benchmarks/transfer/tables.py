"""transfer.json -> the tables and curves of pages: means over datasets of means over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np

ORDER = (
    "scratch", "pretrained", "solved", "solved_full", "rescaled", "refined", "sgd_equal_time", "nearest_class_mean",
    "logistic", "best_closed_form", "nearest", "zoo_mean", "similarity_mean", "universal", "least_squares", "regressor",
    "noise_on_nearest", "zoo_selected", "no_generator", "generated_mean", "generated_selected", "initialize", "oracle",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Rows and comparisons of one subject and split."""

    bundle: str
    split: str
    runs: list[dict]  # that measured them, each for some numbers of shots
    rows: list[dict]
    comparisons: list[dict]

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(r["dataset"] for r in self.rows))


def parts(report: dict) -> list[Part]:
    def of(key: tuple[str, str], items: Sequence[dict]) -> list[dict]:
        return [i for i in items if (i["bundle"], i["split"]) == key]

    keys = dict.fromkeys((run["bundle"], run["split"]) for run in report["runs"])
    return [Part(*key, *(of(key, report[name]) for name in ("runs", "rows", "comparisons"))) for key in keys]


def commits(run: dict) -> list[str]:
    """Of the code that measured a run's cells. Older runs tell only the commit that put them together."""
    return run.get("commits") or [run["commit"] or "unknown"]


def images_read(shots: int | None) -> str:
    return "all train images" if shots is None else f"{shots} a class"


def measured_by(run: dict, runs: Sequence[dict]) -> str:
    """Which numbers of images a run measured; and of which rows and on which datasets, where other `runs` measured
    others of them."""
    text = ", ".join(map(images_read, run["shots"]))
    others = [other for other in runs if other is not run and not set(run["shots"]).isdisjoint(other["shots"])]
    names = [d["name"] for d in run["data"]]
    text += f" ({', '.join(run['methods'])})" if others else ""
    return text + (f" on {', '.join(names)}" if any(d["name"] not in names for o in others for d in o["data"]) else "")


def label(row: dict) -> str:
    """A method with its variant: noise by its sigma, a condition that is not the right one."""
    condition = "" if row["condition"] == "right" else f", {row['condition']}"
    sigma = f" {row['sigma']:g}" if row.get("sigma") is not None else ""
    return f"{row['method']}{sigma}{condition}"


def in_order(labels: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(labels), key=lambda name: ORDER.index(name.partition(",")[0].partition(" ")[0]))


def selected(
    rows: Sequence[dict],
    metric: str,
    step: int | None = None,
    epoch: int | None = None,
    shots: int | None = None,
    target: str | None = None,
) -> list[dict]:
    wanted = (metric, step, epoch, shots, target)
    return [r for r in rows if (r["metric"], r["step"], r["epoch"], r["shots"], r.get("target")) == wanted]


def by_dataset(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Label -> dataset -> mean over seeds and samples."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values.setdefault(label(row), {}).setdefault(row["dataset"], []).append(row["value"])
    return {name: {d: mean(v) for d, v in values[name].items()} for name in in_order(values)}


def means(rows: Sequence[dict], datasets: Sequence[str]) -> dict[str, float]:
    """Label -> mean over datasets; only of those that were measured on all."""
    found = by_dataset(rows)
    return {name: mean(v.values()) for name, v in found.items() if len(v) == len(datasets)}


def spreads(rows: Sequence[dict]) -> dict[str, float]:
    """Label -> standard deviation over seeds of the mean over datasets; NaN for one seed."""
    seeds: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        seeds.setdefault(label(row), {}).setdefault(row["seed"], []).append(row["value"])
    return {
        name: float(np.std([mean(v) for v in by_seed.values()], ddof=1)) if len(by_seed) > 1 else float("nan")
        for name, by_seed in seeds.items()
    }


@dataclass(frozen=True)
class Reached:
    """Steps to a target, over all datasets and seeds."""

    median: float | None  # None where half of the runs or more never reached it
    never: int
    runs: int


def reached(rows: Sequence[dict]) -> dict[str, Reached]:
    """By label."""
    steps: dict[str, list[float]] = {}
    for row in rows:
        steps.setdefault(label(row), []).append(float("inf") if row["value"] is None else row["value"])
    found = {}
    for name in in_order(steps):
        middle = median(steps[name])
        never = sum(s == float("inf") for s in steps[name])
        found[name] = Reached(None if middle == float("inf") else middle, never, len(steps[name]))
    return found


def verdicts(comparisons: Sequence[dict], rival: str, at: str, shots: int | None) -> dict[str, tuple[int, int, int]]:
    """Label -> datasets won, tied and lost against `rival`."""
    counts: dict[str, list[int]] = {}
    for c in comparisons:
        if (c["rival"], c["at"], c["shots"]) == (rival, at, shots):
            counts.setdefault(label(c), [0, 0, 0])[("win", "tie", "loss").index(c["verdict"])] += 1
    return {name: (counts[name][0], counts[name][1], counts[name][2]) for name in in_order(counts)}
