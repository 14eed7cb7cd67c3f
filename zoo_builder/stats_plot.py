"""A zoo as a picture: what each dataset gained, where the entries lie, how far they went from the base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo_builder.errors import ZooError
from zoo_builder.stats import delta_norms
from zoo_builder.store import Zoo, ZooEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

PLAN_COLOURS = ("#2f4b7c", "#f95d6a", "#ffa600", "#a05195", "#5aa9e6", "#8d6e63", "#c7c034", "#555555")
CLUSTER_COLOURS = ("#1b9e77", "#6a3d9a", "#b15928", "#17a2b8", "#d63384", "#8a9a1b", "#777777", "#000000")
DOMAIN_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "p", "<", ">", "h")
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}


def draw_stats(zoo: Zoo, path: str | Path) -> None:
    """A PNG of three panels: gain by dataset, a map of the entries' embeddings, a histogram of their delta norms.

    Raises:
        ZooError: no entry to draw.
    """
    entries = list(zoo.entries())
    if not entries:
        raise ZooError(f"{zoo.path} has no entries to draw. Make some with: d2nwg-init zoo build")
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    plans = list(dict.fromkeys(e.task.plan for e in entries))
    colours = {plan: PLAN_COLOURS[i % len(PLAN_COLOURS)] for i, plan in enumerate(plans)}
    height = min(40.0, max(7.0, 1.5 + 0.24 * len({e.task.scored_on for e in entries})))
    with matplotlib.style.context(["default", STYLE]):  # and not the user's own
        figure = Figure(figsize=(13, height), layout="constrained")
        axes = figure.subplot_mosaic(
            [["gain", "map"], ["gain", "norms"]], width_ratios=(1, 1.25), height_ratios=(2.2, 1)
        )
        _draw_gains(axes["gain"], entries, colours)
        _draw_map(axes["map"], entries)
        _draw_norms(axes["norms"], entries, delta_norms(zoo, entries), colours)
        figure.legend(*axes["gain"].get_legend_handles_labels(), loc="outside lower left", ncols=len(plans) + 1)
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # type: ignore[attr-defined]  # a dataset may have a $ in its name
        figure.canvas.draw()  # the labels' places are known only now
        _part_labels(axes["map"].texts)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=140, format="png")


def _draw_gains(axis: Axes, entries: Sequence[ZooEntry], colours: dict[str, str]) -> None:
    """A line for each dataset, in the order of their mean gains, and a point for each entry."""
    gains: dict[str, list[float]] = {}
    for entry in entries:
        gains.setdefault(entry.task.scored_on, []).append(entry.metrics["gain"])
    names = sorted(gains, key=lambda n: sum(gains[n]) / len(gains[n]))
    for i, (plan, colour) in enumerate(colours.items()):
        some = [e for e in entries if e.task.plan == plan]
        beside = 0.3 * ((i + 0.5) / len(colours) - 0.5)  # so that equal gains of two plans do not hide each other
        heights = [names.index(e.task.scored_on) - beside for e in some]
        axis.scatter(
            [e.metrics["gain"] for e in some], heights, s=34, color=colour, alpha=0.75, lw=0, label=f"plan {plan}"
        )
    means = [sum(gains[n]) / len(gains[n]) for n in names]
    axis.scatter(
        means, range(len(names)), s=110, color="#333333", marker="|", lw=1.6, label="mean of a dataset", zorder=0.9
    )
    axis.axvline(0, color="#888888", lw=0.8)
    axis.set_yticks(range(len(names)), labels=names)
    axis.set(xlabel="gain over the solved base (points)", title="What entries gain, by dataset")
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.grid()


def _draw_map(axis: Axes, entries: Sequence[ZooEntry]) -> None:
    """The embeddings in the plane of their two main directions; each dataset is named once."""
    points, shares = _plane(torch.stack([e.embedding() for e in entries]))
    # An entry's support, and so its embedding, is of its first dataset and domain.
    names = [e.task.datasets[0] for e in entries]
    domains = [e.task.domains[0] for e in entries]
    clusters = [e.about.get("sources", {}).get(n, {}).get("cluster", 0) for e, n in zip(entries, names, strict=True)]
    colours = {c: CLUSTER_COLOURS[i % len(CLUSTER_COLOURS)] for i, c in enumerate(sorted(set(clusters)))}
    markers = {d: DOMAIN_MARKERS[i % len(DOMAIN_MARKERS)] for i, d in enumerate(dict.fromkeys(domains))}
    for (x, y), cluster, domain in zip(points.tolist(), clusters, domains, strict=True):
        axis.scatter(x, y, s=34, color=colours[cluster], marker=markers[domain], alpha=0.6, lw=0)
    for name in sorted(set(names)):
        own = points[[n == name for n in names]]
        x, y = own[(own - own.mean(0)).norm(dim=1).argmin()].tolist()
        axis.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=7, color="#333333")
    for cluster, colour in colours.items():
        axis.scatter([], [], s=34, color=colour, label=f"cluster {cluster + 1}")
    for domain, marker in markers.items():
        axis.scatter([], [], s=34, color="#888888", marker=marker, label=domain)
    axis.set(
        title="Where entries lie: what the base sees in their images",
        xlabel=f"first main direction ({100 * shares[0]:.0f} % of the variance)",
        ylabel=f"second ({100 * shares[1]:.0f} %)",
    )
    axis.margins(x=0.12, y=0.08)
    axis.grid()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _part_labels(labels: Iterable[Text]) -> None:
    """Each label beside its point where it hides none before it, as far as a few places allow."""
    placed: list[Bbox] = []
    for label in labels:
        for place in ((4, 4), (4, -9), (4, 12), (4, -17), (4, 20)):
            label.set_position(place)
            box = label.get_window_extent()
            if not box.count_overlaps(placed):
                break
        placed.append(box)


def _plane(embeddings: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Principal components of [n, d]: coordinates [n, 2] and the two shares of the variance."""
    centred = embeddings.double() - embeddings.double().mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    points = torch.nn.functional.pad(left * values, (0, 1))[:, :2]  # one entry alone has one direction
    shares = values.square() / values.square().sum().clamp_min(1e-12)
    return points, [*shares.tolist(), 0.0][:2]


def _draw_norms(axis: Axes, entries: Sequence[ZooEntry], norms: dict[str, float], colours: dict[str, str]) -> None:
    values = {plan: [norms[e.id] for e in entries if e.task.plan == plan] for plan in colours}
    top = max(max(v) for v in values.values()) or 1.0
    bins = [top * i / 30 for i in range(31)]
    axis.hist(list(values.values()), bins, stacked=True, color=list(colours.values()))
    axis.set(xlabel="norm of the delta (% of the base's)", ylabel="entries", title="How far entries went")
    axis.grid(axis="y")
