"""Draw the tables and plots of docs/benchmark.md and docs/failure-cases.md from docs/results/transfer.json:

python -m d2nwg_init.benchmarks.transfer.document
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from d2nwg_init.benchmarks.drawn_block import replace_block
from d2nwg_init.benchmarks.transfer.page import WIN_ROWS, datasets, few_shot, losses, points, targets, write_page
from d2nwg_init.benchmarks.transfer.plots import draw_curves, draw_wins
from d2nwg_init.benchmarks.transfer.tables import Part, commits, images_read, measured_by, parts
from pretrained_generators.svg import as_svg
from zoo_builder.files import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def block(part: Part) -> str:
    """Markdown of one subject and split."""
    stem = f"results/transfer-{part.bundle}-{part.split}"
    lines = [f"### {part.bundle}, {part.split} split", ""]
    for run in part.runs:
        cores = f"{run['machine']['cores']} CPU cores"
        code = ", ".join(f"`{commit[:10]}`" for commit in commits(run))
        lines += [f"Commit {code}, {cores}, {run['date'][:10]}: {measured_by(run, part.runs)}.", ""]
    for table in (points(part), datasets(part), few_shot(part), targets(part)):
        lines += _table(table)
    captions = {"curves": "test accuracy along the training", "wins": "who wins where"}
    drawn = [name for name, figure in figures(part).items() if figure is not None]
    lines += [f"![{captions[name]}]({stem}-{name}.svg)\n" for name in drawn]
    return "\n".join(lines)


def figures(part: Part) -> dict[str, Figure | None]:
    return {"curves": draw_curves(part), "wins": draw_wins(part, WIN_ROWS)}


def failures(part: Part) -> str:
    """Markdown of the losses of one subject and split."""
    lines = _table(losses(part)) or [_none(part)]
    return "\n".join([f"### {part.bundle}, {part.split} split", "", *lines])


def _none(part: Part) -> str:
    """No loss, where one was looked for."""
    points: dict[int | None, list[str]] = {}
    for c in part.comparisons:
        if c["method"] == "initialize":
            points.setdefault(c["shots"], []).append(c["at"].replace("/", " "))
    if not points:
        return "`initialize` was compared with no rival."
    where = (f"{', '.join(dict.fromkeys(at))} with {images_read(shots)}" for shots, at in points.items())
    return f"None on any dataset, at {'; '.join(where)}. Elsewhere nothing was compared."


def _table(table: dict) -> list[str]:
    if not table["rows"]:
        return []
    note = [table["note"], ""] if table["note"] else []
    return [f"**{table['title']}**", "", *_markdown(table), "", *note]


def _markdown(table: dict) -> list[str]:
    rows = [table["head"], ["---", *("---:" for _ in table["head"][1:])]]
    rows += [[f"`{row[0]}`", *row[1:]] for row in table["rows"]]
    return ["| " + " | ".join(row) + " |" for row in rows]


def draw(docs: Path) -> None:
    report = json.loads((docs / "results/transfer.json").read_text())
    write_page(report, docs / "results/transfer.html")
    for part in parts(report):
        for name, figure in figures(part).items():
            if figure is not None:
                file = docs / f"results/transfer-{part.bundle}-{part.split}-{name}.svg"
                write_text_atomically(file, as_svg(figure))
    for name, drawn in (("benchmark", block), ("failure-cases", failures)):
        document = docs / f"{name}.md"
        text = "\n\n".join(drawn(part) for part in parts(report))
        write_text_atomically(document, replace_block(document.read_text(), "transfer", text))


if __name__ == "__main__":
    draw(Path(__file__).parents[3] / "docs")
