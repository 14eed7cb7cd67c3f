"""The audit as a picture: how near to training models, and how alike in what they get wrong."""

from __future__ import annotations

from collections.abc import Sequence

from pretrained_generators.audit import Sighting
from pretrained_generators.svg import default_style, svg_file


@default_style()
def draw_audit(sightings: Sequence[Sighting]) -> str:
    """An SVG of two panels: distances to the nearest training model, and overlap of wrong answers against accuracy."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(s.method for s in sightings))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    near, alike = figure.subplots(1, 2)
    for i, method in enumerate(methods):
        mine = [s for s in sightings if s.method == method]
        style = {"color": f"C{i}", "marker": "os"[i // 10 % 2], "linestyle": "", "alpha": 0.7}
        near.plot([s.distance for s in mine], [i] * len(mine), **style)
        alike.plot([s.accuracy for s in mine], [s.overlap for s in mine], label=method, **style)
    near.set_yticks(range(len(methods)), labels=methods)
    near.set(xlabel="distance to the nearest training model, at its best length (own norm = 1)")
    near.invert_yaxis()
    alike.set(xlabel="accuracy (%), left-out images", ylabel="largest IoU of wrong answers with a training model's")
    alike.legend(fontsize=7)
    for axis in (near, alike):
        axis.grid(alpha=0.3)
    return svg_file(figure)
