"""A training as a picture: the loss of each stage, and what was measured at the end beside its gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pretrained_generators.svg import default_style, svg_file


@default_style()
def draw_training(losses: Sequence[Mapping], measured: Mapping[str, float], gates: Mapping[str, float]) -> str:
    """An SVG of a panel for each stage, from lines of `stage`, `step` and `loss`, and one of the gates that are in
    `measured`, each in units of what it must reach."""
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(line["stage"] for line in losses))
    figure = Figure(figsize=(3.4 * (len(stages) + 1), 3), layout="constrained")
    *panels, reached = figure.subplots(1, len(stages) + 1, squeeze=False)[0]
    for stage, axis in zip(stages, panels, strict=True):
        mine = [line for line in losses if line["stage"] == stage]
        axis.plot([line["step"] for line in mine], [line["loss"] for line in mine], marker=".")
        axis.set(title=stage, xlabel="step", ylabel="loss")
        axis.grid(alpha=0.3)
    names = [name for name in gates if name in measured]
    ratios = [measured[name] / gates[name] for name in names]
    reached.barh(range(len(names)), ratios, color=["C0" if ratio >= 1 else "C3" for ratio in ratios])
    reached.axvline(1, color="black", linestyle="--")
    reached.set_yticks(range(len(names)), labels=[f"{n}\n{measured[n]:.3g} of {gates[n]:g}" for n in names])
    reached.set(title="gates", xlabel="reached over wanted", xscale="symlog")
    return svg_file(figure)
