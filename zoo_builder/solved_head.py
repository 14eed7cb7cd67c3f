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
    weight: torch.Tensor  # [..., K, d]
    bias: torch.Tensor  # [..., K]
    left_out_logits: torch.Tensor  # [..., N, K]; row i comes from the head solved without image i
    ridge: torch.Tensor  # [...], in units of the mean square norm of a centred feature vector
    scale: torch.Tensor  # [...], of the logits


def solve_head(features: torch.Tensor, labels: torch.Tensor, num_classes: int | torch.Tensor) -> SolvedHead:
    """Ridge regression from features [..., N, d] to one-hot labels [..., N], with intercept.

    Leading dimensions are heads of their own, which may each have its `num_classes` [...]: K is the largest, and the
    logits of classes that a head lacks are -inf.

    The ridge and the scale of the logits minimise the cross-entropy of leave-one-out predictions, which for a
    linear smoother with hat matrix H are exactly y - (y - H y) / (1 - diag H) (Allen's PRESS, 1974).
    """
    counts = torch.as_tensor(num_classes, device=labels.device)
    classes = int(counts.max())
    lacks = torch.arange(classes, device=labels.device) >= counts[..., None]  # [..., K]
    x, y = features.double(), F.one_hot(labels, classes).double()
    mean_x, mean_y = x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    x, y = x - mean_x, y - mean_y
    values, vectors = _left_singular(x)  # [..., r], [..., N, r]
    unit = values.sum(-1, keepdim=True).clamp_min(1e-12) / x.shape[-2]
    projected, squares = vectors.mT @ y, vectors.square()
    best_loss = x.new_full(x.shape[:-2], float("inf"))
    best_ridge, best_scale = torch.full_like(best_loss, RIDGES[0]), torch.full_like(best_loss, SCALES[0])
    for ridge in RIDGES:
        left_out = _left_out(y, mean_y, values / (values + ridge * unit), vectors, squares, projected)
        left_out = left_out.masked_fill(lacks[..., None, :], -torch.inf)
        for scale in SCALES:
            loss = -(scale * left_out).log_softmax(-1).gather(-1, labels[..., None]).mean((-2, -1))
            better = loss < best_loss
            best_loss = torch.where(better, loss, best_loss)
            best_ridge = torch.where(better, ridge, best_ridge)
            best_scale = torch.where(better, scale, best_scale)
    ridge_, scale_ = best_ridge[..., None] * unit, best_scale[..., None, None]
    left_out = _left_out(y, mean_y, values / (values + ridge_), vectors, squares, projected)
    weight = scale_ * (x.mT @ (vectors @ (projected / (values + ridge_)[..., None]))).mT
    bias = scale_[..., 0] * mean_y[..., 0, :] - (weight @ mean_x.mT)[..., 0]
    return SolvedHead(
        weight.float(),
        bias.masked_fill(lacks, -torch.inf).float(),
        (scale_ * left_out).masked_fill(lacks[..., None, :], -torch.inf).float(),
        best_ridge,
        best_scale,
    )


def _left_out(
    y: torch.Tensor,
    mean_y: torch.Tensor,
    shrink: torch.Tensor,
    vectors: torch.Tensor,
    squares: torch.Tensor,
    projected: torch.Tensor,
) -> torch.Tensor:
    """Leave-one-out predictions [..., N, K] of the smoother that shrinks by `shrink` [..., r]."""
    residual = y - vectors @ (shrink[..., None] * projected)
    leverage = (squares @ shrink[..., None]) + 1 / y.shape[-2]
    return y - residual / (1 - leverage).clamp_min(1e-6) + mean_y


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


def ridge_query_logits(
    support: torch.Tensor,
    support_labels: torch.Tensor,
    query: torch.Tensor,
    num_classes: int,
    ridge: torch.Tensor,
    scale: torch.Tensor,
    present: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits [..., Q, K] of query features [..., Q, d] under the heads solved on support features [..., S, d];
    differentiable in all. Leading dimensions are heads of their own, each with its `ridge` and `scale` [..., 1]; where
    `present` [..., S] is zero, a support image counts for nothing.

    The dual form: alpha = (A A' + ridge I)^-1 (Y - mean Y), `ridge` in units of the mean of diag(A A').
    """
    weight = support.new_ones(support.shape[:-1]) if present is None else present.to(support.dtype)
    weight, count = weight[..., None], weight.sum(-1)[..., None, None]
    y = F.one_hot(support_labels, num_classes).to(support.dtype)
    mean, mean_y = (weight * support).sum(-2, keepdim=True) / count, (weight * y).sum(-2, keepdim=True) / count
    a = weight * (support - mean)
    kernel = a @ a.mT
    unit = kernel.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] / count
    identity = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
    regularised = kernel + (ridge[..., None] * unit + 1e-6) * identity
    # Unchecked: of several heads one may have diverged.
    alpha = torch.linalg.solve_ex(regularised, weight * (y - mean_y)).result
    return scale[..., None] * ((query - mean) @ (a.mT @ alpha) + mean_y)
