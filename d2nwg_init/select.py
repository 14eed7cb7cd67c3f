"""Which candidate wins: the smallest cross-entropy on images that its head was not solved on. The user's own weights
are left only for something better by more than one standard error, unless they know nothing: a model that was passed
with a fresh head, and a body that was never trained beside one that was."""

from __future__ import annotations

import math
from collections.abc import Sequence

from d2nwg_init.candidates import Candidate
from zoo_builder.errors import ModelError

SURE = 2.0  # standard errors by which the model as it was passed must know the images better than chance
OWN = ("as_passed", "own_body")  # the user's own weights, the smaller change first
UNJUDGED = (*OWN, "generated", "base", "probe")


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
    for own in sorted((c for c in usable if c.kind in OWN), key=lambda c: (OWN.index(c.kind), c.losses.mean().item())):
        excess = own.losses - best.losses
        if excess.mean() <= excess.std() / len(excess) ** 0.5:
            return own
    return best


def compete(candidates: Sequence[Candidate], num_classes: int, own_is_untrained: bool) -> list[Candidate]:
    """Those that are not out of the question. Of few images every loss is nearly that of chance, and by chance weights
    that know nothing would win."""
    others = any(c.kind not in OWN and c.usable for c in candidates)
    out = {"own_body"} if own_is_untrained and others else set()
    left = [c for c in candidates if c.kind not in out and (c.kind != "as_passed" or _knows(c, num_classes))]
    return left if any(c.usable for c in left) else list(candidates)


def _knows(candidate: Candidate, num_classes: int) -> bool:
    gain = math.log(num_classes) - candidate.losses
    return bool(gain.mean() > SURE * gain.std() / len(gain) ** 0.5)


def _unjudged(usable: Sequence[Candidate]) -> Candidate:
    """With one image a class nothing tells solved heads apart: the user's own weights, or where these are the bundle's
    base or were never trained, a sample: on the development sets a weak one is better than the base."""
    return min(usable, key=lambda c: UNJUDGED.index(c.kind))
