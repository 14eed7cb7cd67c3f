"""Linear heads in closed form: ridge regression on one-hot labels, its strength and scale chosen on left-out images.

A head solved on features says how good a body is without training anything; differentiated through, it is the
objective of episodic fine-tuning (R2-D2, Bertinetto et al., ICLR 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

RIDGES = tuple(10.0**e for e in (-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0))
SCALES = tuple(2.0**e for e in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0))


@dataclass(frozen=True)
class SolvedHead:
    weight: torch.Tensor  # [K, d]
    bias: torch.Tensor  # [K]
    left_out_logits: torch.Tensor  # [N, K]; row i comes from the head solved without image i
    ridge: float  # in units of the mean square norm of a centred feature vector
    scale: float  # of the logits


def solve_head(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> SolvedHead:
    """Ridge regression from features [N, d] to one-hot labels [N], with intercept.

    The ridge and the scale of the logits minimise the cross-entropy of leave-one-out predictions, which for a
    linear smoother with hat matrix H are exactly y - (y - H y) / (1 - diag H) (Allen's PRESS, 1974).
    """
    x, y = features.double(), F.one_hot(labels, num_classes).double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    values, vectors = _left_singular(x)
    unit = float(values.sum().clamp_min(1e-12)) / len(x)
    projected, squares = vectors.T @ y, vectors.square()
    best = (float("inf"), RIDGES[0], SCALES[0], y)
    for ridge in RIDGES:
        shrink = values / (values + ridge * unit)
        residual = y - vectors @ (shrink[:, None] * projected)
        leverage = squares @ shrink + 1 / len(x)
        left_out = y - residual / (1 - leverage).clamp_min(1e-6)[:, None] + mean_y
        for scale in SCALES:
            loss = F.cross_entropy(scale * left_out, labels).item()
            if loss < best[0]:
                best = (loss, ridge, scale, left_out)
    _, ridge, scale, left_out = best
    weight = scale * (x.T @ (vectors @ (projected / (values + ridge * unit)[:, None]))).T
    bias = scale * mean_y - weight @ mean_x
    return SolvedHead(weight.float(), bias.float(), (scale * left_out).float(), ridge, scale)


def _left_singular(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared singular values and left singular vectors [N, r] of x [N, d], from the smaller of its Gram matrices."""
    if len(x) <= x.shape[1]:
        values, vectors = torch.linalg.eigh(x @ x.T)
        return values.clamp_min(0), vectors
    values, right = torch.linalg.eigh(x.T @ x)
    singular = values.clamp_min(0).sqrt()
    # Directions in which the features do not vary have no left vector: theirs becomes zero.
    return singular.square(), x @ right / singular.clamp_min(max(float(singular.max()) * 1e-7, 1e-12))


def ridge_query_logits(
    support: torch.Tensor,
    support_labels: torch.Tensor,
    query: torch.Tensor,
    num_classes: int,
    ridge: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Logits [Q, K] of query features [Q, d] under the head solved on support features [S, d]; differentiable in all.

    The dual form of METHOD: alpha = (A A' + ridge I)^-1 (Y - mean Y), `ridge` in units of the mean of diag(A A').
    """
    mean = support.mean(0)
    a = support - mean
    kernel = a @ a.T
    y = F.one_hot(support_labels, num_classes).to(support.dtype)
    unit = kernel.diagonal().mean()
    regularised = kernel + (ridge * unit + 1e-6) * torch.eye(len(a), dtype=a.dtype, device=a.device)
    alpha = torch.linalg.solve(regularised, y - y.mean(0))
    return scale * ((query - mean) @ (a.T @ alpha) + y.mean(0))
