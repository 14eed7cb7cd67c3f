"""The plots of one part of transfer.json: accuracy against steps and against seconds, and who wins where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2nwg_init.benchmarks.transfer.tables import Part, in_order, label, means, selected
from pretrained_generators.svg import default_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = (0, 10, 30, 100)
DRAWN = (
    "scratch", "pretrained", "solved", "rescaled", "refined", "sgd_equal_time", "universal", "nearest", "regressor",
    "no_generator", "generated_mean", "initialize",
)  # fmt: skip
WIDTH = 0.8  # of the bars of one dataset together


@default_style()
def draw_curves(part: Part) -> Figure | None:
    """Mean test accuracy over datasets: against steps, and against seconds from the loader on. None where nothing was
    trained."""
    from matplotlib.figure import Figure

    at = {s: means(selected(part.rows, "test_accuracy", step=s), part.datasets) for s in STEPS}
    names = [n for n in in_order(at[STEPS[-1]]) if n in DRAWN]
    if not names:
        return None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_steps, by_seconds = figure.subplots(1, 2)
    began = means(selected(part.rows, "seconds_initialise"), part.datasets)
    trained = {s: means(selected(part.rows, "seconds", step=s), part.datasets) for s in STEPS[1:]}
    for name in names:
        values = [at[s][name] for s in STEPS]
        seconds = [began[name], *(began[name] + trained[s][name] for s in STEPS[1:])]
        colour = f"C{DRAWN.index(name)}"
        by_steps.plot(STEPS, values, marker="o", color=colour, label=name)
        by_seconds.plot(seconds, values, marker="o", color=colour, label=name)
    by_steps.set(xscale="symlog", xlabel="fine-tuning steps", ylabel="test accuracy (%), mean over datasets")
    by_steps.set_xticks(STEPS, labels=[str(s) for s in STEPS])
    by_seconds.set(xlabel="seconds: initialisation, then training on one core")
    for axis in (by_steps, by_seconds):
        axis.grid(alpha=0.3)
    by_steps.legend(fontsize=8)
    return figure


@default_style()
def draw_wins(part: Part, methods: Sequence[str], rival: str = "solved", at: str = "step/0") -> Figure | None:
    """Difference to the rival on each dataset, with the one-sided intervals; filled where it is a win or a loss for
    other seeds too. None where nothing was compared."""
    from matplotlib.figure import Figure

    found = [c for c in part.comparisons if (c["rival"], c["at"], c["shots"]) == (rival, at, None)]
    names = [n for n in in_order(label(c) for c in found) if n in methods]
    if not names:
        return None
    figure = Figure(figsize=(11, 0.6 + 0.22 * len(names) * len(part.datasets)), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(names):
        for c in (c for c in found if label(c) == name):
            place = part.datasets.index(c["dataset"]) + WIDTH * ((i + 0.5) / len(names) - 0.5)
            axis.errorbar(
                c["difference"],
                place,
                xerr=[[c["difference"] - c["low"]], [c["high"] - c["difference"]]],
                fmt="o",
                color=f"C{i}",
                markerfacecolor="white" if c["verdict"] == "tie" or c["seeds"] == 1 else f"C{i}",
                label=name if c["dataset"] == part.datasets[0] else None,
            )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(part.datasets)), labels=part.datasets)
    axis.invert_yaxis()
    filled = "filled: holds at 95 % over all datasets (Holm), of seeds that were more than one"
    axis.set(xlabel=f"points of test accuracy over {rival}, {at}; {filled}")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
