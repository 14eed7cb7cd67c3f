"""A figure of matplotlib as SVG, the same for the same figures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def default_style() -> Iterator[None]:
    """To draw in as well as to save: the user's own rcParams may want LaTeX, say, and are theirs again afterwards."""
    import matplotlib.style

    with matplotlib.style.context(["default", {"svg.hashsalt": "d2nwg-init", "svg.fonttype": "none"}]):
        yield


@default_style()
def svg_file(figure: Figure) -> str:
    """A whole document."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def as_svg(figure: Figure) -> str:
    """An element to be put into a page."""
    text = svg_file(figure)
    return text[text.index("<svg") :]
