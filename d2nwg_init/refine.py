"""A few steps on the images read, from the weights that were chosen.

The loss is that of each image of a batch under the head solved without it, the one that zoo and generator were trained
on: no head has to be learnt first, and none is spoilt by features that move.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init.candidates import placed
from d2nwg_init.muon import Muon
from d2nwg_init.undo import copied_state
from pretrained_generators.weight_layout import parameters_in_scope
from zoo_builder.backbones import caught_features, extract_features, set_head
from zoo_builder.batchnorm import batchnorm_layers, batchnorm_training, recalibrate_batchnorm
from zoo_builder.classifier import find_classifier
from zoo_builder.small_maps import SmallMaps
from zoo_builder.solved_head import RIDGES, SolvedHead, left_out_loss, solve_head
from zoo_builder.support_set import SupportSet

MAX_NORM = 5.0  # of the gradient
BATCH = 128  # images
STEPS, MOST_STEPS = 18, 40  # by default; at most, of less than a batch
# Of the weights, those of the first layers, which stay as they are: few, at the largest resolution, and a good part of
# the time, in which more steps of the others do more.
FIRST = 0.01
# Of matrices, and of all else. Weights before BatchNorm have no scale, and bear more; but a body that was pretrained on
# more than a bundle's base, or leans on its means (a bundle whose base absorbs statistics), has more to lose.
RATES, CAREFUL_RATES = (0.03, 8e-3), (0.01, 1e-3)
TRAININGS_OF_FEW = 3  # from the same start, of less than a batch: much of where one goes is the order of its images
SHARE = 0.5  # of the way from the weights as they were to those trained
AS_THEY_ARE = 2  # times that an image is shown so; from then on it is jittered, which costs points before
ZOOM, SHIFT, TURN = 0.1, 0.1, 0.12  # of the images, at most: a share of the size, of half of the size, radians
# Of the head of a refined body. Its left-out loss flatters, and would have smaller ones, whose weights are so large
# that the first steps of a training, which move the body, cost several points.
RIDGES_AFTER = tuple(r for r in RIDGES if r >= 0.01)
SOFTER = 0.5  # times the logits of a refined body: the same classes, from which a training gets further
CAREFUL_PASSES = 6  # over the images, at most; more of few images cost points where the body is good already
AVERAGED = 3  # the last of so many parts of the steps
ACTIVATIONS = 2**30  # bytes that the images of a batch may hold for their gradients, all at once
FEWEST = 8  # images that are gone through at once, whatever they hold: BatchNorm needs some


@dataclass(frozen=True)
class Refinement:
    steps: int  # of each training
    before: float  # cross-entropy of the images, each under a head solved without it
    after: float  # the same of what the model is now; it flatters, for the body was trained on them
    kept: bool  # False: training went astray, and the model is as it was


def refine(
    model: nn.Module,
    support: SupportSet,
    steps: int,
    seed: int,
    names: Collection[str] | None = None,
    advance: Callable[[], None] = lambda: None,
    careful: bool = False,
) -> Refinement | None:
    """Train the body of `model`, or of its parameters those in `names`, but for the first layers, on the support images
    and solve its head again, in place; `advance` is called after each step of each of its trainings. `careful`: at the
    lower rates that a body without BatchNorm always has.

    Half of the way to the mean of the trained weights is gone. No image is held back to judge them: on the development
    sets a fifth of the images, held back, refused what was right more often than what was wrong, and was missed in
    training. Where the loss has not fallen even on the images trained on, the body stays as it was. Either way
    BatchNorm is recalibrated and the head solved on all images. None where there are too few images of a class, or
    features are not finite: the head is not solved then.
    """
    if not can_be_refined(support):
        return None
    images, labels = placed(support.images, model), support.labels
    names = parameters_in_scope(model, "body") if names is None else names
    trained = _trained(model, names)
    parameters = list(trained.values())
    before = _solved(model, images, labels)  # which sets BatchNorm
    if before is None:
        return None
    as_it_was = copied_state(model)
    rates = CAREFUL_RATES if careful or not batchnorm_layers(model) else RATES
    start = [as_it_was[name] for name in trained]
    generator, ends = torch.Generator().manual_seed(seed), []
    with _gradients_of(model, parameters):
        for _ in range(trainings(len(labels))):
            _set(parameters, start)
            ends.append(_fit(model, parameters, images, labels, support.batch, rates, steps, generator, advance))
    end = [torch.stack(parts).mean(0) for parts in zip(*ends, strict=True)]
    _set(parameters, [torch.lerp(a, b, SHARE) for a, b in zip(start, end, strict=True)])
    after = _solved(model, images, labels, RIDGES_AFTER)
    loss = [F.cross_entropy(h.left_out_logits, labels).item() if h else math.inf for h in (before, after)]
    kept = loss[1] < loss[0]
    head = after if after and kept else before
    if not kept:
        model.load_state_dict(as_it_was)
    # Solved on images that the body was trained on, a head is too sure of itself: its logits keep the scale of before.
    scale = (SOFTER if kept else 1) * (before.scale / head.scale).float()
    set_head(model, scale * head.weight, scale * head.bias, images)
    return Refinement(steps, loss[0], loss[kept], kept)


def default_steps(num_images: int, careful: bool = False) -> int:
    """For so many images read: fewer than a batch are shown more often, each training in the same time; or, to be
    `careful`, fewer images are shown no more than so many times."""
    if careful:
        return min(STEPS, CAREFUL_PASSES * _batches_of(num_images))
    return min(MOST_STEPS, STEPS * BATCH // min(num_images, BATCH))


def trainings(num_images: int) -> int:
    """From the same start on so many images read, whose weights are averaged."""
    return TRAININGS_OF_FEW if num_images < BATCH else 1


def gradient_comes(model: nn.Module, support: SupportSet, names: Collection[str]) -> bool:
    """Whether the features of `model` have a gradient in those of its parameters `names` that are trained: not where a
    body is run inside torch.no_grad(), for its head alone to be trained, nor where all but the first layers are in
    checkpoints (use_reentrant=True). BatchNorm's statistics are not what they were after it."""
    parameters = _trained(model, names).values()
    with _gradients_of(model, parameters), batchnorm_training(model), caught_features(model) as caught:
        model(placed(support.images[:2], model))
    return caught[0].requires_grad


def can_be_refined(support: SupportSet) -> bool:
    """Whether a batch holds two images of a class in the mean. One that is alone in it is left out of a head that knows
    nothing of its class: of a hundred classes of what the base was pretrained on, refined bodies were worse."""
    return min(len(support), BATCH) >= 2 * support.classes_seen


def _trained(model: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    """Of the parameters `names`, without the first, in the order of the model, that hold `FIRST` of the weights."""
    parameters = {name: p for name, p in model.named_parameters() if name in names and p.is_floating_point()}
    upto = list(itertools.accumulate(p.numel() for p in parameters.values()))
    return {name: p for (name, p), n in zip(parameters.items(), upto, strict=True) if n > FIRST * upto[-1]}


@contextmanager
def _gradients_of(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, of these alone: the way back through the model ends at the first of them."""
    before = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter, required in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(required)


def _solved(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, ridges: Sequence[float] = RIDGES
) -> SolvedHead | None:
    """Recalibrate BatchNorm in place, and solve a head, which the model does not get. None: features are not finite."""
    with caught_features(model) as caught:
        layers = recalibrate_batchnorm(model, images)  # a pass, of which the features serve
    features = (torch.cat(caught) if layers else extract_features(model, images)).cpu()
    if not torch.isfinite(features).all():
        return None
    return solve_head(features, labels, find_classifier(model).num_classes, ridges=ridges)


def _fit(
    model: nn.Module,
    parameters: Sequence[torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    largest: int,
    rates: tuple[float, float],
    steps: int,
    generator: torch.Generator,
    advance: Callable[[], None],
) -> list[torch.Tensor]:
    """The mean of the weights over the last steps at a constant rate (stochastic weight averaging, Izmailov et al.
    2018): of Muon for matrices (Jordan et al. 2024), which gets further in so few steps than AdamW, and of AdamW for
    all else. BatchNorm has the statistics of the batch; or of its parts, of at most `largest` images, the largest batch
    of the loader, where that is more than ACTIVATIONS hold. All else is in evaluation mode."""
    matrices = [p for p in parameters if _is_matrix(p)]
    others = [p for p in parameters if not _is_matrix(p)]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=rates[0]))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=rates[1]))
    warmups = [torch.optim.lr_scheduler.LinearLR(o, 1 / 6, total_iters=max(1, steps // 6)) for o in optimizers]
    batches = _batches(len(labels), generator)
    last = -(-steps // AVERAGED)
    mean = [torch.zeros_like(p) for p in parameters]
    with batchnorm_training(model):
        at_once = max(FEWEST, largest, ACTIVATIONS // _activations(model, images[:2]))
        for step in range(steps):
            times, batch = next(batches)
            shown = images[batch] if times < AS_THEY_ARE else _jittered(images[batch], generator)
            for optimizer in optimizers:
                optimizer.zero_grad()
            _backward(model, shown.tensor_split(-(-len(shown) // at_once)), labels[batch])
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            for optimizer, warmup in zip(optimizers, warmups, strict=True):
                optimizer.step()
                warmup.step()
            if step >= steps - last:
                mean = [m.add(p.detach(), alpha=1 / last) for m, p in zip(mean, parameters, strict=True)]
            advance()
    return mean


def _activations(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes that one image [1, C, H, W] of these holds until its gradient is computed."""
    own = {p.data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = model(images)  # else one tensor might come to lie where another was
    del kept
    return max(1, sum(n for at, n in held.items() if at not in own) // len(images))


def _backward(model: nn.Module, parts: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
    """Add the gradients of the left-out loss of a batch. In several parts the loss is still of the whole: its gradient
    in the features is taken first, and each part is run again for it (Gao et al., "Scaling Deep Contrastive Learning
    Batch Size under Memory Limited Setup", 2021)."""
    device = parts[0].device
    solving = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no double precision
    classes, y = labels.unique(return_inverse=True)
    y = y.to(solving)
    with caught_features(model) as caught, SmallMaps():
        with torch.set_grad_enabled(len(parts) == 1):
            for part in parts:
                model(part)
        if len(parts) == 1:
            left_out_loss(caught.pop().to(solving), y, len(classes)).backward()
            return
        features = torch.cat(caught).to(solving).requires_grad_()
        caught.clear()
        (gradients,) = torch.autograd.grad(left_out_loss(features, y, len(classes)), features)
        for part, gradient in zip(parts, gradients.split([len(p) for p in parts]), strict=True):
            model(part)
            caught.pop().backward(gradient.to(device))


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Of a linear layer or a convolution, but for depthwise ones and what is all but a vector, which Muon does not
    take."""
    if parameter.ndim < 2 or 1 in parameter.shape[:2]:
        return False
    small, large = sorted((len(parameter), parameter[0].numel()))
    return small >= 4 and large <= 128 * small


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


def _batches(count: int, generator: torch.Generator) -> Iterator[tuple[int, torch.Tensor]]:
    """Indices of `count` images, without end, each with how often they were there before: all are before one comes
    again."""
    for times in itertools.count():
        order = torch.randperm(count, generator=generator)
        for batch in order.tensor_split(_batches_of(count)):
            yield times, batch


def _batches_of(count: int) -> int:
    return max(1, round(count / BATCH))
