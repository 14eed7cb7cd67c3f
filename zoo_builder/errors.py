"""The errors that a user can meet. Each says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class D2NWGError(Exception):
    """Base of all errors that this project raises on purpose."""


class DataError(D2NWGError):
    """A dataset, loader or image cannot be used."""


class DataWarning(UserWarning):
    """Some images of a dataset cannot be used; the others are."""


class ModelError(D2NWGError):
    """A model cannot be used, or its name is unknown."""


class RecipeError(D2NWGError):
    """A recipe or configuration is wrong."""


class ZooError(D2NWGError):
    """A zoo cannot be read, or a build did not finish."""


class BundleError(D2NWGError):
    """A generator bundle is unknown, damaged or does not fit."""


def nearest_names(name: str, known: Iterable[str], limit: int = 8) -> str:
    """The known names most like `name`, for the end of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(known[:limit]) + (f", ... ({len(known)} in all)" if len(known) > limit else "")
    return f"known: {shown or 'none'}"
