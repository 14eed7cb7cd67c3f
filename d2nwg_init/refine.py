"""A few steps on the images read, from the weights that were chosen.

The loss is that of each image of a batch under the head solved without it, the one that zoo and generator were trained
on: no head has to be learnt first, and none is spoilt by features that move.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init.candidates import placed
from d2nwg_init.undo import copied_state
from pretrained_generators.weight_layout import parameters_in_scope
from zoo_builder.backbones import caught_features, extract_features, set_head
from zoo_builder.batchnorm import batchnorm_layers, batchnorm_training, recalibrate_batchnorm
from zoo_builder.classifier import find_classifier
from zoo_builder.solved_head import left_out_loss, ridge_head, solve_head
from zoo_builder.support_set import SupportSet

MAX_NORM = 5.0  # of the gradient
BATCH = 128  # images
LEARNING_RATE, WITHOUT_BATCHNORM = 8e-3, 1e-3  # weights before a BatchNorm have no scale, and bear more
SHARE = 0.5  # of the way from the weights as they were to those trained
AS_THEY_ARE = 2  # times that an image is shown so; from then on it is jittered, which costs points before
ZOOM, SHIFT, TURN = 0.1, 0.1, 0.12  # of the images, at most: a share of the size, of half of the size, radians
PRIOR = 8.0  # a gain in nats, over its variance: refining helps on all development sets, and few images say little
# against it
UNUSABLE = 1e6  # the loss of features that are not finite
AVERAGED = 3  # the last of so many parts of the steps
FACTORS = tuple(2.0 ** (e / 2) for e in range(-6, 3))  # of logits, tried
HELD_BACK = 5  # one image of so many of each class judges the result


@dataclass(frozen=True)
class Refinement:
    steps: int
    before: float  # cross-entropy of the images held back
    after: float  # the same of what the model is now
    kept: bool  # False: nothing was gained, and the model is as it was


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

    Half of the way to the trained weights is gone. One image in five of each class is held back; where their loss says
    that nothing was gained the body stays as it was. Either way BatchNorm is recalibrated and the head solved on all
    images. None where no class has five, or features are not finite: the head is not solved then.
    """
    images, labels = placed(support.images, model), support.labels
    held_back = _held_back(labels, seed)
    if not held_back.any():
        return None
    names = parameters_in_scope(model, "body") if names is None else names
    trained = {name: p.requires_grad_() for name, p in model.named_parameters() if name in names}
    parameters = list(trained.values())
    before = _judge(model, images, labels, held_back)  # which sets BatchNorm
    if before.loss == UNUSABLE:
        return None
    as_it_was = copied_state(model)
    start = [as_it_was[name] for name in trained]
    fitted = torch.nonzero(~held_back)[:, 0]
    end = _fit(model, parameters, images, labels, fitted, steps, seed, advance)
    _set(parameters, [torch.lerp(a, b, SHARE) for a, b in zip(start, end, strict=True)])
    after = _judge(model, images, labels, held_back)
    if after.loss == UNUSABLE or not gained(before.losses, after.losses):
        model.load_state_dict(as_it_was)
        head = solve_head(before.features, labels, before.num_classes)
        set_head(model, head.weight, head.bias, images)
        return Refinement(steps, before.loss, before.loss, kept=False)
    set_head(model, *ridge_head(after.features, labels, after.num_classes, after.ridge, after.scale), images)
    return Refinement(steps, before.loss, after.loss, kept=True)


def gained(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether images' losses [M] fell, given PRIOR; of a single image nothing can be told, and it is believed."""
    lower = before - after
    return not lower.mean() + PRIOR * lower.var(correction=0) / (len(lower) - 1) <= 0


def can_be_refined(support: SupportSet) -> bool:
    """Whether an image can be held back: a class has five."""
    return bool(torch.bincount(support.labels).max() >= HELD_BACK)


def _held_back(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """bool [N]: of each class every fifth image, so that those with fewer keep all."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    same = F.one_hot(labels[order]).cumsum(0).gather(1, labels[order, None])[:, 0]  # 1 for the first of its class
    chosen = torch.empty_like(same, dtype=torch.bool)
    chosen[order] = same % HELD_BACK == 0
    return chosen


@dataclass(frozen=True)
class _Judged:
    losses: torch.Tensor  # cross-entropy of each image held back, under a head solved on the others
    features: torch.Tensor  # [N, d], of all
    num_classes: int
    ridge: torch.Tensor  # of the head, as `solve_head` has it
    scale: torch.Tensor

    @property
    def loss(self) -> float:
        return self.losses.mean().item()


def _judge(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, held_back: torch.Tensor) -> _Judged:
    """Recalibrate BatchNorm in place, and solve a head on the images that are not held back. Of its logits' scale the
    others choose a factor: a head solved on images that the body was trained on is too sure of itself."""
    with caught_features(model) as caught:
        layers = recalibrate_batchnorm(model, images)  # a pass, of which the features serve
    features = (torch.cat(caught) if layers else extract_features(model, images)).cpu()
    num_classes = find_classifier(model).num_classes
    if not torch.isfinite(features).all():
        losses = torch.full_like(labels[held_back], UNUSABLE, dtype=features.dtype)
        return _Judged(losses, features, num_classes, *torch.zeros(2))
    head = solve_head(features[~held_back], labels[~held_back], num_classes)
    logits = features[held_back] @ head.weight.T + head.bias
    tried = {f: F.cross_entropy(f * logits, labels[held_back], reduction="none") for f in FACTORS}
    factor = min(tried, key=lambda f: tried[f].mean().item())
    return _Judged(tried[factor], features, num_classes, head.ridge, factor * head.scale)


def _fit(
    model: nn.Module,
    parameters: Sequence[torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    fitted: torch.Tensor,
    steps: int,
    seed: int,
    advance: Callable[[], None],
) -> list[torch.Tensor]:
    """The mean of the weights over the last steps of AdamW at a constant rate (stochastic weight averaging, Izmailov et
    al. 2018), on the images of the indices `fitted`. BatchNorm has the statistics of the batch, all else is in
    evaluation mode."""
    rate = LEARNING_RATE if batchnorm_layers(model) else WITHOUT_BATCHNORM
    optimizer = torch.optim.AdamW(list(parameters), lr=rate)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 6, total_iters=steps // 6)
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(fitted, generator)
    last = -(-steps // AVERAGED)
    mean = [torch.zeros_like(p) for p in parameters]
    with batchnorm_training(model), caught_features(model) as caught:
        for step in range(steps):
            times, batch = next(batches)
            model(images[batch] if times < AS_THEY_ARE else _jittered(images[batch], generator))
            classes, y = labels[batch].unique(return_inverse=True)
            loss = left_out_loss(caught.pop(), y.to(images.device), len(classes))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            warmup.step()
            if step >= steps - last:
                mean = [m.add(p.detach(), alpha=1 / last) for m, p in zip(mean, parameters, strict=True)]
            advance()
    return mean


@torch.no_grad()
def _set(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _jittered(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image [B, C, H, W] a little larger or smaller, shifted and turned: what changes no label of any dataset."""
    zoom, shift = (torch.rand(2, len(images), 2, generator=generator) * 2 - 1).unbind(0)
    angle = TURN * (torch.rand(len(images), generator=generator) * 2 - 1)
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    maps = torch.cat([(1 + ZOOM * zoom)[:, :, None] * turned, SHIFT * shift[:, :, None]], dim=2).to(images)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    jittered = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return jittered.contiguous(memory_format=torch.channels_last)


def _batches(indices: torch.Tensor, generator: torch.Generator) -> Iterator[tuple[int, torch.Tensor]]:
    """Of the indices, without end, each with how often its images were there before: all are before one comes again."""
    for times in itertools.count():
        order = indices[torch.randperm(len(indices), generator=generator)]
        for batch in order.tensor_split(max(1, round(len(order) / BATCH))):
            yield times, batch
