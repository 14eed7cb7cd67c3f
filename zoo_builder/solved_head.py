"""Linear heads in closed form: ridge regression on one-hot labels, its strength and scale chosen on left-out images.

A head solved on features says how good a body is without training anything; the loss of the images left out of it,
differentiated through the solve, is what a body is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

RIDGES = tuple(10.0**e for e in (-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0))
SCALES = tuple(2.0**e for e in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0))


@dataclass(frozen=True)
class SolvedHead:
    weight: torch.Tensor  # [..., K, d]
    bias: torch.Tensor  # [..., K]
    left_out_logits: torch.Tensor  # [..., N, K]; row i comes from the head solved without image i
    ridge: torch.Tensor  # [...], in units of the mean square norm of a centred feature vector
    scale: torch.Tensor  # [...], of the logits


def solve_head(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int | torch.Tensor,
    present: torch.Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
) -> SolvedHead:
    """Ridge regression from features [..., N, d] to one-hot labels [..., N], with intercept.

    Leading dimensions are heads of their own, which may each have its `num_classes` [...]: K is the largest, and the
    logits of classes that a head lacks are -inf. Where `present` [..., N] is zero, an image counts for nothing.

    The ridge, one of `ridges`, and the scale of the logits minimise the cross-entropy of leave-one-out predictions,
    which for a linear smoother with hat matrix H are exactly y - (y - H y) / (1 - diag H) (Allen's PRESS, 1974).
    """
    p = _centred(features, labels, num_classes, present)
    values, vectors = _left_singular(p.x)  # [..., r], [..., N, r]
    unit = values.sum(-1, keepdim=True).clamp_min(1e-12) / p.total[..., 0]
    projected, squares = vectors.mT @ p.y, vectors.square()

    def left_out(ridges: torch.Tensor) -> torch.Tensor:
        """Left-out logits [R, ..., N, K] of ridges [..., R]; one product for all is quicker than one for each."""
        shrink = values[..., None] / (values[..., None] + ridges[..., None, :])  # [..., r, R]
        parts = shrink[..., None] * projected[..., None, :]  # [..., r, R, K]
        fitted = (vectors @ parts.flatten(-2)).unflatten(-1, parts.shape[-2:]).movedim(-2, 0)
        return _without_each(p, p.y - fitted, (squares @ shrink).movedim(-1, 0)[..., None])

    grid = torch.tensor(ridges, dtype=unit.dtype, device=unit.device)
    logits = left_out(grid * unit)
    losses = torch.stack([_loss(p, scale * logits, labels) for scale in SCALES], dim=1).flatten(0, 1)
    best = losses.nan_to_num(nan=torch.inf).argmin(0)
    ridge = grid[best // len(SCALES)]
    scale = torch.tensor(SCALES, dtype=unit.dtype, device=unit.device)[best % len(SCALES)]
    chosen, scale_ = ridge[..., None] * unit, scale[..., None, None]
    weight = scale_ * (p.x.mT @ (vectors @ (projected / (values + chosen)[..., None]))).mT
    bias = scale_[..., 0] * p.mean_y[..., 0, :] - (weight @ p.mean_x.mT)[..., 0]
    return SolvedHead(
        weight.float(),
        bias.masked_fill(p.lacks[..., 0, :], -torch.inf).float(),
        (scale_ * left_out(chosen)[0]).float(),
        ridge,
        scale,
    )


def left_out_loss(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int | torch.Tensor,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy [...] of each image under the head that is solved without it, differentiable in the features
    [..., N, d]; arguments as of `solve_head`, whose ridge and scale it takes for constants.

    R2-D2 (Bertinetto et al., ICLR 2019) solves a head on half of an episode, asks it about the other half and learns
    one ridge and one scale for all. Here every image is on both sides, and each dataset has the ridge and the scale
    that a user's head will have: with one scale for all, hard datasets are punished for its confidence.
    """
    # Of several heads one may have diverged; it must not stop the others.
    head = solve_head(features.detach().nan_to_num(), labels, num_classes, present)
    p = _centred(features, labels, num_classes, present)
    kernel = p.x @ p.x.mT
    unit = kernel.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(1e-12) / p.total
    ridge = head.ridge[..., None, None] * unit
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    # 1 - H; its eigenvalues, and not those of the inverse alone, are free of the features' unit.
    rest = ridge * torch.linalg.inv_ex(kernel + ridge * identity).inverse
    leverage = 1 - rest.diagonal(dim1=-2, dim2=-1)[..., None]
    logits = head.scale[..., None, None] * _without_each(p, rest @ p.y, leverage)
    return _loss(p, logits, labels).float()


class _Centred(NamedTuple):
    x: torch.Tensor  # float64 [..., N, d], less its mean; zero where an image is absent
    y: torch.Tensor  # float64 [..., N, K], one-hot, likewise
    mean_x: torch.Tensor  # [..., 1, d]
    mean_y: torch.Tensor  # [..., 1, K]
    present: torch.Tensor  # [..., N]
    total: torch.Tensor  # [..., 1, 1], of images that are present
    lacks: torch.Tensor  # bool [..., 1, K], classes that a head does not have


def _centred(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int | torch.Tensor, present: torch.Tensor | None
) -> _Centred:
    counts = torch.as_tensor(num_classes, device=labels.device)
    classes = int(counts.max())
    lacks = torch.arange(classes, device=labels.device) >= counts[..., None, None]
    x, y = features.double(), F.one_hot(labels, classes).double()
    present = torch.ones_like(x[..., 0]) if present is None else present.double()
    weight = present[..., None]
    total = weight.sum(-2, keepdim=True)
    mean_x, mean_y = (weight * x).sum(-2, keepdim=True) / total, (weight * y).sum(-2, keepdim=True) / total
    return _Centred(weight * (x - mean_x), weight * (y - mean_y), mean_x, mean_y, present, total, lacks)


def _without_each(p: _Centred, residual: torch.Tensor, leverage: torch.Tensor) -> torch.Tensor:
    """Leave-one-out predictions [..., N, K] of a smoother of the centred labels with residuals y - H y [..., N, K] and
    leverages diag H [..., N, 1]; the mean takes a share of its own."""
    left_out = p.y - residual / (1 - leverage - 1 / p.total).clamp_min(1e-6) + p.mean_y
    return left_out.masked_fill(p.lacks, -torch.inf)


def _loss(p: _Centred, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    classes = labels[..., None].expand(*logits.shape[:-1], 1)
    each = -logits.log_softmax(-1).gather(-1, classes)[..., 0]
    return (p.present * each).sum(-1) / p.total[..., 0, 0]


def _left_singular(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared singular values and left singular vectors [N, r] of x [N, d], from the smaller of its Gram matrices."""
    if x.shape[-2] <= x.shape[-1]:
        values, vectors = torch.linalg.eigh(x @ x.mT)
        return values.clamp_min(0), vectors
    values, right = torch.linalg.eigh(x.mT @ x)
    singular = values.clamp_min(0).sqrt()
    # Directions in which the features do not vary have no left vector: theirs becomes zero.
    least = (singular.amax(-1, keepdim=True) * 1e-7).clamp_min(1e-12)
    return singular.square(), x @ right / torch.maximum(singular, least)[..., None, :]
