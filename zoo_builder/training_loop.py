"""Adam on a stack of bodies: one loop for one model and for many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timm.scheduler import CosineLRScheduler

from zoo_builder.backbones import prepare_images
from zoo_builder.model_stack import ModelStack
from zoo_builder.objectives import Batch, Objective
from zoo_builder.tasks import Training

CURVE_POINTS = 20  # of the loss of a training
MAX_NORM = 5.0  # of a model's gradient


def fit(
    stack: ModelStack,
    objective: Objective,
    draw_batch: Callable[[], Batch],
    training: Training,
    rates: Sequence[float],
    *,
    bf16: bool = False,
) -> list[list[tuple[int, float]]]:
    """One cycle, gradients clipped, in place, with a peak learning rate for each model; for each model the curve of its
    loss (step, mean since the point before)."""
    parameters = [p for p in (*stack.parameters.values(), *objective.parameters()) if p.requires_grad]
    # The cycle is one for all models; of each step that it gives, a model takes as much as its own rate.
    # A gradient of rounding errors alone (BatchNorm makes some so) is no reason for a whole step.
    optimizer = torch.optim.Adam(parameters, lr=1.0, eps=1e-6)
    schedule = one_cycle(optimizer, training.steps, max(1, training.steps // 10), 1 / 20)
    device = next(iter(stack.parameters.values())).device
    peaks = torch.tensor(rates, device=device)
    since, every = torch.zeros(len(stack), device=device), max(1, training.steps // CURVE_POINTS)
    points: list[tuple[int, list[float]]] = []
    for step in range(training.steps):
        schedule.step_update(step)
        batch = draw_batch()
        images = prepare_images(stack.body, batch.images.flatten(0, 1)).unflatten(0, batch.labels.shape)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = stack.features(images, batch.fit)
        losses = objective.losses(features.float(), batch)
        optimizer.zero_grad()
        losses.sum().backward()
        _clip_gradients(parameters)
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
        _shorten_steps(parameters, before, peaks)
        since += losses.detach()  # read at the points of the curve alone: on a GPU each reading waits for it
        if (step + 1) % every == 0 or step + 1 == training.steps:
            passed = step + 1 - (points[-1][0] if points else 0)
            points.append((step + 1, (since / passed).tolist()))
            since.zero_()
    return [[(step, losses[m]) for step, losses in points] for m in range(len(stack))]


def one_cycle(optimizer: torch.optim.Optimizer, steps: int, warmup: int, warmup_lr: float) -> CosineLRScheduler:
    """Up to the optimizer's learning rates from `warmup_lr` in `warmup` steps, and down to zero by the last."""
    return CosineLRScheduler(optimizer, t_initial=steps, warmup_t=warmup, warmup_lr_init=warmup_lr, t_in_epochs=False)


def _clip_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Each model's to MAX_NORM."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim))) for g in gradients])  # [P, M]
    factor = (MAX_NORM / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(_for_each_model(factor, gradient))


@torch.no_grad()
def _shorten_steps(parameters: Sequence[torch.Tensor], before: Sequence[torch.Tensor], rates: torch.Tensor) -> None:
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(torch.lerp(old, parameter, _for_each_model(rates, parameter)))


def _for_each_model(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[M] -> [M, 1, ...], of as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
