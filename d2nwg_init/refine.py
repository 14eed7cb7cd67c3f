"""A few steps on the images read, from the weights that were chosen.

The loss is that of each image of a batch under the head solved without it, the one that zoo and generator were trained
on: no head has to be learnt first, and none is spoilt by features that move.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import nn

from d2nwg_init.candidates import set_body_and_solve
from d2nwg_init.undo import copied_state
from pretrained_generators.weight_layout import parameters_in_scope
from zoo_builder.backbones import caught_features, predict
from zoo_builder.batchnorm import batchnorm_training
from zoo_builder.classifier import find_classifier
from zoo_builder.solved_head import left_out_loss
from zoo_builder.support_set import SupportSet

MAX_NORM = 5.0  # of the gradient
BATCH = 128  # images
LEARNING_RATE = 5e-3  # peak
FACTORS = tuple(2.0 ** (e / 2) for e in range(-6, 3))  # of logits, tried
HELD_BACK = 5  # one image of so many of each class judges the result


@dataclass(frozen=True)
class Refinement:
    steps: int
    before: float  # cross-entropy of the images held back
    after: float
    kept: bool  # else the model is as it was


def refine(
    model: nn.Module,
    support: SupportSet,
    steps: int,
    seed: int,
    names: Collection[str] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Refinement | None:
    """Train the body of `model`, or of its parameters those in `names`, on the support images and solve its head again,
    in place; `advance` is called after each step.

    One image in five of each class is held back; where their loss does not fall, the model stays as it was. None where
    no class has five.
    """
    parameter = next(model.parameters())
    images = support.images.to(parameter.device, parameter.dtype, memory_format=torch.channels_last)
    labels, held_back = support.labels, _held_back(support.labels, seed)
    if not held_back.any():
        return None
    fitted, judging = (images[~held_back], labels[~held_back]), (images[held_back], labels[held_back])
    state = copied_state(model)
    before, _ = _judge(model, fitted, judging)
    _fit(model, *fitted, steps, seed, names, advance)
    after, factor = _judge(model, fitted, judging)
    kept = bool(after.mean() < before.mean())  # NaN is not
    if kept:
        set_body_and_solve(model, {}, images, labels)
        _scale_head(model, factor)
    else:
        model.load_state_dict(state)
    return Refinement(steps, before.mean().item(), after.mean().item(), kept)


def _held_back(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """bool [N]: of each class every fifth image, so that those with fewer keep all."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    same = F.one_hot(labels[order]).cumsum(0).gather(1, labels[order, None])[:, 0]  # 1 for the first of its class
    chosen = torch.empty_like(same, dtype=torch.bool)
    chosen[order] = same % HELD_BACK == 0
    return chosen


def _judge(
    model: nn.Module, fitted: tuple[torch.Tensor, torch.Tensor], judging: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """The losses of `judging` images under a head solved on `fitted` ones, and the factor of its logits that is best
    for them: a head solved on images that the body was trained on is too sure of itself."""
    set_body_and_solve(model, {}, *fitted)
    logits, labels = predict(model, judging[0]).cpu(), judging[1]
    losses = {factor: F.cross_entropy(factor * logits, labels, reduction="none") for factor in FACTORS}
    factor = min(losses, key=lambda f: losses[f].mean().item())
    return losses[factor], factor


@torch.no_grad()
def _scale_head(model: nn.Module, factor: float) -> None:
    for parameter in find_classifier(model).layer.parameters():
        parameter.mul_(factor)


def _fit(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    seed: int,
    names: Collection[str] | None,
    advance: Callable[[], None],
) -> None:
    """AdamW under one cycle; BatchNorm has the statistics of the batch, all else is in evaluation mode."""
    names = parameters_in_scope(model, "body") if names is None else names
    parameters = [p.requires_grad_() for name, p in model.named_parameters() if name in names]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    schedule = CosineLRScheduler(
        optimizer, t_initial=steps, warmup_t=max(1, steps // 6), warmup_lr_init=LEARNING_RATE / 6, t_in_epochs=False
    )
    batches = _batches(len(labels), seed)
    with batchnorm_training(model), caught_features(model) as caught:
        for step in range(steps):
            schedule.step_update(step)
            batch = next(batches)
            model(images[batch])
            classes, y = labels[batch].unique(return_inverse=True)
            loss = left_out_loss(caught.pop(), y.to(images.device), len(classes))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            advance()


def _batches(count: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices, without end; every image is there before one comes again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tensor_split(max(1, round(count / BATCH)))
