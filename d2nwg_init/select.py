"""Which candidate wins: the smallest cross-entropy on images that its head was not solved on. The user's own weights
are left only for something better by more than one standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

from d2nwg_init.candidates import Candidate
from zoo_builder.errors import ModelError

OWN = ("as_passed", "own_body")  # the user's own weights, the smaller change first


def select(candidates: Sequence[Candidate]) -> Candidate:
    """The one-standard-error rule (Breiman et al. 1984), on paired differences of the images' losses, for the user's
    own weights; the bundle's base and its samples are alike in kind, and the better one is taken.

    Raises:
        ModelError: no candidate gives finite predictions.
    """
    usable = [c for c in candidates if c.usable]
    if not usable:
        raise ModelError(
            "No candidate gives finite predictions on the images read, not even the model as it was passed. "
            "Check its weights and the scale of the images."
        )
    if not all(c.judged for c in usable):
        return _unjudged(usable)
    best = min(usable, key=lambda c: c.losses.mean().item())
    for own in sorted((c for c in usable if c.kind in OWN), key=lambda c: OWN.index(c.kind)):
        excess = own.losses - best.losses
        if excess.mean() <= excess.std() / len(excess) ** 0.5:
            return own
    return best


def _unjudged(usable: Sequence[Candidate]) -> Candidate:
    """With one image a class nothing tells solved heads apart. The model stays as it was passed where it knows these
    images better than chance, by two standard errors; else its own body gets a head."""
    for c in usable:
        if c.kind == "as_passed":
            gain = math.log(len(c.losses)) - c.losses
            if gain.mean() > 2 * gain.std() / len(gain) ** 0.5:
                return c
    return next((c for c in usable if c.kind == "own_body"), usable[-1])
