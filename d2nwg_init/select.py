"""Which candidate wins: the smallest cross-entropy on images that its head was not solved on, and among those that
are as good within one standard error the simplest."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from d2nwg_init.candidates import Candidate
from zoo_builder.errors import ModelError

SIMPLICITY = ("as_passed", "own_body", "base", "generated")


def select(candidates: Sequence[Candidate]) -> Candidate:
    """The one-standard-error rule (Breiman et al. 1984) on paired differences of the images' losses.

    A generated candidate yields only to a simpler kind, never to another sample: those are alike in kind.

    Raises:
        ModelError: no candidate gives finite predictions.
    """
    usable = [c for c in candidates if c.usable]
    if not usable:
        raise ModelError(
            "No candidate gives finite predictions on the images read, not even the model as it was passed. "
            "Check its weights and the scale of the images."
        )
    best = min(usable, key=lambda c: c.losses.mean().item())
    for kind in SIMPLICITY[: SIMPLICITY.index(best.kind)]:
        simpler = [c for c in usable if c.kind == kind]
        for candidate in sorted(simpler, key=lambda c: c.losses.mean().item()):
            excess = candidate.losses - best.losses
            if excess.mean() <= excess.std(correction=1) / torch.tensor(len(excess)).sqrt():
                return candidate
    return best
