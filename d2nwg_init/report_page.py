"""The report as one HTML page that needs nothing beside it. Names in it are untrusted text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pretrained_generators.svg import as_svg, default_style

if TYPE_CHECKING:
    from d2nwg_init.report import InitReport

GREY = "#808080"  # is read on white and on black


def render_page(report: InitReport) -> str:
    """HTML without scripts, in the reader's light or dark colours; it holds no image of the user's."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("report.html.jinja")
    return template.render(report=report, plot=Markup(_draw_losses(report)))


@default_style()
def _draw_losses(report: InitReport) -> str:
    """The left-out loss of each candidate, with its standard error; the chosen one filled."""
    from matplotlib.figure import Figure

    shown = [c for c in report.candidates if not c.discarded]
    figure = Figure(figsize=(7, 0.8 + 0.28 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for background in (figure.patch, axis.patch):
        background.set_visible(False)
    for place, c in enumerate(shown):
        fill = "C0" if c.name == report.chosen else "none"
        axis.errorbar(c.loss, place, xerr=c.loss_error, fmt="o", color="C0", markerfacecolor=fill)
    axis.set_yticks(range(len(shown)), labels=[c.name for c in shown])
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    axis.invert_yaxis()
    axis.set_xlabel("left-out loss, with its standard error", color=GREY)
    axis.tick_params(colors=GREY)
    axis.spines[:].set_color(GREY)
    axis.grid(axis="x", alpha=0.3)
    return as_svg(figure)
