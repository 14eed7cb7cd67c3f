"""What the zoo commands print as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from zoo_builder.datasets import ImageDataset
    from zoo_builder.rescore import Rescored
    from zoo_builder.store import ZooEntry


def scores_table(rescored: Iterable[Rescored]) -> Table:
    table = Table("entry", title="Solved accuracy (%), on record and scored again")
    for heading in ("base", "again", "entry", "again"):
        table.add_column(heading, justify="right")
    for r in rescored:
        figures = (r.recorded_base, r.measured_base, r.recorded_best, r.measured_best)
        table.add_row(escape(r.id), *(f"{v:.1f}" for v in figures))
    return table


def datasets_table(datasets: Iterable[ImageDataset], held_out: Iterable[str]) -> Table:
    from zoo_builder.datasets.same_dataset import is_among

    table = Table(title="Datasets")
    table.add_column("dataset", no_wrap=True)
    for heading in ("classes", "train", "test", "pixels", "broken"):
        table.add_column(heading, justify="right")
    for heading in ("held out", "licence", "origin", "sha256"):
        table.add_column(heading, overflow="fold")
    for d in datasets:
        figures = (d.num_classes, len(d.x_train), len(d.x_test), d.x_train.shape[1], len(d.skipped))
        about = ("yes" if is_among(d.name, held_out) else "", escape(d.licence), escape(d.origin), d.sha256[:8])
        table.add_row(escape(d.name), *map(str, figures), *about)
    return table


def gains_table(by: str, found: Mapping[str, Any]) -> Table:
    norms = found["delta_norm_by_plan"] if by == "plan" else {}
    table = Table(by, title=f"Gain by {by} (points)")
    for heading in ("entries", "mean", "min", "max", *(["delta norm (% of base)"] if norms else [])):
        table.add_column(heading, justify="right")
    for name, gain in found[f"gain_by_{by}"].items():
        figures = [f"{gain[k]:.1f}" for k in ("mean", "min", "max")]
        norm = [f"{norms[name]:.2f}"] if norms else []
        table.add_row(escape(name), str(gain["entries"]), *figures, *norm)
    return table


def pairs_table(title: str, values: Mapping[str, Any]) -> Table:
    table = Table("", "", title=escape(title), title_justify="left", show_header=False)
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value)) or "none"
        table.add_row(name, escape(f"{value:.4g}" if isinstance(value, float) else str(value)))
    return table


def sources_table(entry: ZooEntry) -> Table:
    table = Table("dataset", "licence", "origin", "sha256", title="sources", title_justify="left")
    for name, source in entry.about.get("sources", {}).items():
        table.add_row(*(escape(v) for v in (name, source["licence"], source["origin"], source["sha256"][:12])))
    return table


def tensors_table(entry: ZooEntry) -> Table:
    """What the file holds, by the first part of the tensors' names."""
    groups = defaultdict(list)
    for name, tensor in entry.tensors().items():
        groups[name.partition("/")[0]].append(tensor)
    table = Table("tensors", "count", "dtype", "values", "bytes", title="file", title_justify="left")
    for name, tensors in sorted(groups.items()):
        dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
        values, size = sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors)
        table.add_row(name, str(len(tensors)), ", ".join(dtypes), f"{values:,}", f"{size:,}")
    return table
