"""transfer.json -> one HTML page that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path

from d2nwg_init.benchmarks.transfer.plots import draw_curves, draw_wins
from d2nwg_init.benchmarks.transfer.report import POINTS, TARGETS
from d2nwg_init.benchmarks.transfer.tables import (
    Part,
    Reached,
    by_dataset,
    commits,
    in_order,
    means,
    measured_by,
    parts,
    reached,
    selected,
    spreads,
    verdicts,
)
from pretrained_generators.svg import as_svg
from zoo_builder.files import write_text_atomically

WIN_ROWS = ("refined", "universal", "nearest", "regressor", "no_generator", "generated_mean", "initialize", "oracle")
SHOTS = (1, 5, 16)


def write_page(report: dict, out: Path) -> None:
    """Of every subject and split in the report: its tables and plots."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.jinja")
    write_text_atomically(out, page.render(report=report, sections=[section(part) for part in parts(report)]))


def section(part: Part) -> dict:
    """What the template shows of one subject and split; figures as text."""
    from markupsafe import Markup

    figures = [draw_curves(part), draw_wins(part, WIN_ROWS), draw_wins(part, WIN_ROWS, at="step/30")]
    return {
        "bundle": part.bundle,
        "split": part.split,
        "runs": [
            {**run, "measured": measured_by(run, part.runs), "commits": ", ".join(commits(run))} for run in part.runs
        ],
        "tables": [t for t in (f(part) for f in (points, datasets, few_shot, targets, losses)) if t["rows"]],
        "plots": [Markup(as_svg(figure)) for figure in figures if figure is not None],
    }


def points(part: Part) -> dict:
    """Mean accuracy along the training."""
    columns = {}
    for at in POINTS:
        kind, _, number = at.partition("/")
        columns[at] = selected(part.rows, "test_accuracy", **{kind: int(number)})  # type: ignore[arg-type]
    found = {at: means(rows, part.datasets) for at, rows in columns.items()}
    spread = spreads(columns["step/0"])
    seconds = means(selected(part.rows, "seconds_initialise"), part.datasets)
    won = verdicts(part.comparisons, "solved", "step/0", None)
    return {
        "title": "Test accuracy (%), mean over datasets and seeds",
        "head": ["", *(at.replace("/", " ") for at in POINTS), "± over seeds", "seconds", "won / tied / lost"],
        "rows": [
            [
                name,
                *(_figure(found[at].get(name)) for at in POINTS),
                _figure(spread[name]),
                _figure(seconds.get(name)),
                " / ".join(map(str, won[name])) if name in won else "",
            ]
            for name in in_order(found["step/0"])
        ],
        "note": "± is the standard deviation over seeds of the mean at step 0. Seconds are those to initialise. "
        f"Won, tied and lost: datasets against solved at step 0, {_judged(part)}. "
        f"oracle looks at the test images: it is no rival.{_epoch_1(part)}",
    }


def _judged(part: Part) -> str:
    seeds = max((c["seeds"] for c in part.comparisons), default=1)
    over = "images and seeds" if seeds > 1 else "the images of one seed, which says nothing of other seeds"
    return f"paired bootstrap over {over}, Holm over datasets, one-sided 95 %"


def _epoch_1(part: Part) -> str:
    """What an earlier protocol measured there."""
    earlier = {
        name for run in part.runs if None in run["shots"] and run.get("protocol", 0) < 4 for name in run["methods"]
    }
    names = in_order({r["method"] for r in part.rows if r["epoch"] == 1} & earlier)
    if not names:
        return ""
    return (
        f" Epoch 1 of {', '.join(names)}: of an earlier protocol, which read it one epoch into a cycle of 100 steps "
        "where an epoch has fewer, at a rate that had yet to come down. A fresh head suffers most by that: step 100, "
        "the end of the cycle, is fairer."
    )


def datasets(part: Part) -> dict:
    found = by_dataset(selected(part.rows, "test_accuracy", step=0))
    return {
        "title": "Test accuracy (%) at step 0 by dataset",
        "head": ["", *part.datasets],
        "rows": [[name, *(_figure(row.get(d)) for d in part.datasets)] for name, row in found.items()],
        "note": "",
    }


def few_shot(part: Part) -> dict:
    found = {n: means(selected(part.rows, "test_accuracy", step=0, shots=n), part.datasets) for n in SHOTS}
    names = in_order(name for row in found.values() for name in row)
    return {
        "title": "Test accuracy (%) at step 0 with few images, mean over datasets and seeds",
        "head": ["", *(f"{n} a class" for n in SHOTS)],
        "rows": [[name, *(_figure(found[n].get(name)) for n in SHOTS)] for name in names],
        "note": "best_closed_form is the best, on the development sets, of the heads solved, nearest_class_mean and "
        "logistic on the recalibrated base.",
    }


def targets(part: Part) -> dict:
    found = {t: reached(selected(part.rows, "steps_to_target", target=t)) for t in TARGETS}
    names = in_order(name for row in found.values() for name in row)
    return {
        "title": "Steps to a target, median over datasets and seeds",
        "head": ["", *(t.replace("_", " ") for t in TARGETS)],
        "rows": [[name, *(_reached(found[t].get(name)) for t in TARGETS)] for name in names],
        "note": "The target is the accuracy of pretrained, or of solved, after one epoch. Looked at every 5 steps."
        + _epoch_1(part),
    }


def losses(part: Part) -> dict:
    """Where `initialize` is worse than a rival on one dataset."""
    lost = [c for c in part.comparisons if c["method"] == "initialize" and c["verdict"] == "loss"]
    lost.sort(key=lambda c: c["difference"])
    return {
        "title": "Where initialize loses",
        "head": ["", "images of a class", "at", "rival", "difference", "interval"],
        "rows": [
            [
                c["dataset"],
                "all" if c["shots"] is None else str(c["shots"]),
                c["at"].replace("/", " "),
                c["rival"],
                f"{c['difference']:.1f}",
                f"{c['low']:.1f} to {c['high']:.1f}",
            ]
            for c in lost
        ],
        "note": f"Points of test accuracy below a rival, {_judged(part)}.",
    }


def _reached(found: Reached | None) -> str:
    if found is None:
        return ""
    middle = "never" if found.median is None else f"{found.median:g}"
    return f"{middle} ({found.never} of {found.runs} never)" if found.never else middle


def _figure(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.1f}"
