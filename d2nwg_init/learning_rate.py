"""Which learning rate to fine-tune with, where docs/results say it: transfer_choices.json and uncovered.json."""

from __future__ import annotations

# AdamW's at the peak of one cycle, batches of 64, of 3e-4, 1e-3, 3e-3 and 1e-2 the best on the development sets:
INITIALIZED, WITHOUT_BATCHNORM = 1e-3, 3e-4  # for the rows `initialize` and `refined`
OWN_BODY = 3e-4  # of 3e-4, 1e-3 and 3e-3, for a pretrained model of no bundle; a fresh head on it has 1e-3


def measured_learning_rate(
    kind: str,
    solved_head: bool,
    whole_body: bool,
    has_batchnorm: bool,
    absorbing: bool,
    refined: bool,
    pretrained: bool = True,
) -> float | None:
    """The rate for what was chosen: None but for a `refined` body, generated, the bundle's base or the user's own,
    `pretrained`, each whole and with a solved head; and where the base is `absorbing` statistics, on which none was
    measured. What was not refined, generated or the base, did best at one rate on one base, and at a third of it on
    another."""
    if not (solved_head and whole_body and refined and pretrained):
        return None
    if kind in ("probe", "generated", "base") and not absorbing:
        return INITIALIZED if has_batchnorm else WITHOUT_BATCHNORM
    return OWN_BODY if kind == "own_body" and has_batchnorm else None
