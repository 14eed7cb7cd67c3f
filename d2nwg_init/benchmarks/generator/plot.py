"""The compression curve of one bundle, from the rows of generator.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrained_generators.svg import default_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "vae": "VAE of the bundle",
    "svd": "truncated SVD of each layer",
    "pca_chunks": "PCA of each chunk",
    "pca": "PCA of whole deltas",
}


@default_style()
def draw_compression(rows: Sequence[dict], gate: float) -> Figure:
    """Share of the gain that is left on entries kept out of all fitting, against compression, by codec."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for i, (codec, label) in enumerate(LABELS.items()):
        mine = sorted(
            (r["compression"], r["value"]) for r in rows if r.get("codec") == codec and r["value"] is not None
        )
        style = {"marker": "*", "markersize": 14} if codec == "vae" else {"marker": "o"}
        axis.plot(*zip(*mine, strict=True) if mine else ([], []), color=f"C{i}", label=label, **style)
    axis.axhline(gate, color="black", linewidth=0.8, linestyle="--", label=f"gate: {gate:g}")
    axis.set(xscale="log", xlabel="compression: numbers of a delta over numbers of its code")
    axis.set(ylabel="share of the gain that is kept")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
