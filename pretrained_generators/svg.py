"""A figure of matplotlib as SVG, the same for the same figures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def svg_file(figure: Figure) -> str:
    """A whole document."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "d2nwg-init", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def as_svg(figure: Figure) -> str:
    """An element to be put into a page."""
    text = svg_file(figure)
    return text[text.index("<svg") :]
