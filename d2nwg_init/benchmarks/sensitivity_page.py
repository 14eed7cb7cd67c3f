"""Draw the tables and the plot of docs/sensitivity.md from docs/results/sensitivity.json:

python -m d2nwg_init.benchmarks.sensitivity_page
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from d2nwg_init.benchmarks.drawn_block import replace_block
from d2nwg_init.benchmarks.results import ChoiceRow
from d2nwg_init.benchmarks.sensitivity import AS_IT_IS, ROWS, ZOO_DATASETS
from d2nwg_init.benchmarks.transfer.tables import commits
from pretrained_generators.svg import as_svg, default_style
from zoo_builder.files import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = ("choice", *(f"{row} (%)" for row in ROWS), "gain kept by the VAE", "by samples")
PLOT = "sensitivity-zoo.svg"


def table_rows(rows: Sequence[ChoiceRow]) -> list[list[str]]:
    """A line for each choice, under HEAD."""
    return [
        [
            choice,
            *(f"{accuracy(rows, choice, method):.1f}" for method in ROWS),
            *(f"{_value(rows, choice, f'{what}_gain_kept'):.2f}" for what in ("reconstruction", "sampling")),
        ]
        for choice in dict.fromkeys(r.choice for r in rows)
    ]


def accuracy(rows: Sequence[ChoiceRow], choice: str, method: str) -> float:
    """In percent, mean over datasets, seeds and samples."""
    return mean(r.value for r in rows if (r.choice, r.method, r.metric) == (choice, method, "test_accuracy"))


def by_zoo(rows: Sequence[ChoiceRow]) -> dict[int, str]:
    """The choices of smaller zoos, and the zoo as it is, by the number of its datasets."""
    sizes = {r.choice: int(r.value) for r in rows if r.metric == ZOO_DATASETS}
    whole = sizes[AS_IT_IS]
    return {n: choice for choice, n in sorted(sizes.items(), key=lambda x: x[1]) if n < whole or choice == AS_IT_IS}


@default_style()
def draw_zoo(rows: Sequence[ChoiceRow]) -> Figure:
    """Test accuracy against the number of datasets in the zoo."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    choices = by_zoo(rows)
    for method in ROWS:
        axis.plot(list(choices), [accuracy(rows, c, method) for c in choices.values()], marker="o", label=method)
    axis.set(xscale="log", xlabel="datasets in the zoo", ylabel="test accuracy (%), mean over the development sets")
    axis.set_xticks(list(choices), labels=[str(n) for n in choices])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _value(rows: Sequence[ChoiceRow], choice: str, metric: str) -> float:
    return next((r.value for r in rows if (r.choice, r.metric) == (choice, metric)), float("nan"))


def block(report: dict) -> str:
    """Markdown of all choices."""
    rows = [ChoiceRow(**row) for row in report["rows"]]
    code = ", ".join(f"`{commit[:10]}`" for commit in commits(report))
    lines = [f"Commit {code}, {report['machine']['cores']} CPU cores, {report['date'][:10]}.", ""]
    for line in (HEAD, ["---", *("---:" for _ in HEAD[1:])], *table_rows(rows)):
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join([*lines, "", f"![test accuracy by the number of datasets in the zoo](results/{PLOT})"])


def draw(docs: Path) -> None:
    report = json.loads((docs / "results/sensitivity.json").read_text())
    write_text_atomically(docs / "results" / PLOT, as_svg(draw_zoo([ChoiceRow(**row) for row in report["rows"]])))
    document = docs / "sensitivity.md"
    write_text_atomically(document, replace_block(document.read_text(), "sensitivity", block(report)))


if __name__ == "__main__":
    draw(Path(__file__).parents[2] / "docs")
