"""Muon (Jordan et al. 2024), in the precision of the weights.

timm's and torch's orthogonalise in bfloat16, whatever that is. A CPU without instructions for it, as most are,
takes several times as long for that as for all else of a training step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz

MOMENTUM = 0.9
# Of the polynomials that orthogonalise, one after the other (Cesista et al., "Squeezing 1-2% Efficiency Gains Out of
# Muon by Optimizing the Newton-Schulz Coefficients", 2025): timm's default.
POLYNOMIALS = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions or more [O, ...], of which the others are taken as one; with Nesterov's momentum.
    A step is as large as AdamW's at the same rate, in the root mean square (Liu et al. 2025)."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:  # of a head that is run in training alone, as Inception's second
                    continue
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                mean = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
                update = p.grad.lerp(mean, MOMENTUM).flatten(1)
                direction = zeropower_via_newtonschulz(update, len(POLYNOMIALS), POLYNOMIALS, dtype=update.dtype)
                p.sub_(direction.view_as(p), alpha=group["lr"] * get_lr_scale(direction.shape))
