"""Draw the README's table from docs/results/demo.json: python -m d2nwg_init.benchmarks.readme"""

from __future__ import annotations

import json
from pathlib import Path

from d2nwg_init.benchmarks.demo import METHODS, mean_accuracies
from d2nwg_init.benchmarks.drawn_block import replace_block
from d2nwg_init.benchmarks.results import Row


def results_block(report: dict) -> str:
    """Markdown: for each dataset, test accuracy by method and step, mean over seeds (and samples)."""
    rows = [Row(**row) for row in report["rows"]]
    seeds = len({r.seed for r in rows})
    lines = [
        f"Test accuracy (%) after fine-tuning steps, mean over {seeds} seeds; drawn from "
        f"[docs/results/demo.json](docs/results/demo.json), commit `{report['commit'][:10]}`, "
        f"{report['machine']['cores']} CPU cores."
    ]
    for dataset in dict.fromkeys(r.dataset for r in rows):
        mine = [r for r in rows if r.dataset == dataset]
        steps = list(mean_accuracies(mine, METHODS[0]))
        lines += [
            "",
            f"| {dataset} | " + " | ".join(f"step {s}" for s in steps) + " |",
            "|---" * (len(steps) + 1) + "|",
        ]
        for method in METHODS:
            cells = " | ".join(f"{v:.1f}" for v in mean_accuracies(mine, method).values())
            lines.append(f"| `{method}` | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    report = json.loads((root / "docs/results/demo.json").read_text())
    readme = root / "README.md"
    readme.write_text(replace_block(readme.read_text(), "results", results_block(report)))
