"""Which parameter of a model is which of a bundle's body: by its name; or, where the libraries name them otherwise, by
the order in which they are run. And how a body for three channels becomes one for others."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn

from d2nwg_init.accepted_model import give_copies, working_copy
from zoo_builder.backbones import evaluating, extract_features, is_norm
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError
from zoo_builder.inputs import noting_inputs

Shape = tuple[int, ...]
IMAGES = 4  # of noise, that a match by order is tried on
SHAKEN = 0.1  # noise on each parameter then, in its deviations: behind a layer that is zero nothing would be seen
TOLERANCE = 1e-3  # of the features that must be equal, relative to their norm; a wrong match is off by about 1


@dataclass(frozen=True)
class Match:
    """How what is made for a bundle's body fits a model."""

    names: Mapping[str, str]  # of the body's parameters, in the model
    shapes: Mapping[str, Shape]  # of the body's parameters, in the model
    stem: str | None = None  # the body's parameter that changes with the channels
    channels: torch.Tensor | None = None  # `channel_map` of the model's; None: they are the body's
    scaling: tuple[torch.Tensor, torch.Tensor] | None = None  # factors and summands [C] of images, in front of the body
    hidden: tuple[str, ...] = ()  # layers behind the body that the model has and the bundle has not

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of it, a sentence each."""
        notes = []
        if any(theirs != ours for theirs, ours in self.names.items()):
            notes.append("the bundle names this architecture's parameters otherwise; they were paired as they are run")
        if self.channels is not None:
            notes.append(f"the stem of the bundle was adapted from 3 channels to {self.channels.shape[1]}")
        if self.scaling is not None:
            notes.append("the bundle is shown the images as the model's body gets them, normalised by the model")
        if self.hidden:
            notes.append(f"nothing was generated for {', '.join(self.hidden)}, which the bundle's body has not")
        return tuple(notes)

    def parameters(self, of_body: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters of the body under the model's names, in its shapes."""
        return {self.names[name]: self._adapted(name, value) for name, value in of_body.items()}

    def _adapted(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if name == self.stem and self.channels is not None:
            value = torch.einsum("okhw,kc->ochw", value, self.channels.to(value))
        return value.reshape(self.shapes[name])

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] of the model as the body takes them: its stem sees in these what the adapted one sees in
        those."""
        if self.scaling is not None:
            factor, summand = (v.to(images)[:, None, None] for v in self.scaling)
            images = images * factor + summand
        return images if self.channels is None else torch.einsum("kc,nchw->nkhw", self.channels.to(images), images)


def channel_map(channels: int) -> torch.Tensor:
    """[3, C]: what C channels are in red, green and blue. A stem times this is timm's stem for C channels: a single one
    is gray; of more, each is red, green, blue, red, ... at 3 / C of its strength."""
    if channels == 1:
        return torch.ones(3, 1)
    return torch.eye(3).repeat(1, math.ceil(channels / 3))[:, :channels] * (3 / channels)


def first_misfit(model: nn.Module, body: nn.Module) -> str:
    """Of a model that a body does not match: the first parameter, of the body, that differs in name or shape; the
    stem's channels may."""
    if may_match(model, body):
        return "it computes something else with parameters of the same shapes, or changes images before it does"
    want = _wanted(model, body).shapes
    without = [_shapes(model, head) for head in _heads(model)]
    have = min(without, key=lambda have: len(have.items() ^ want.items()))
    name = min(name for name, _ in have.items() ^ want.items())
    return f"{name} is {have.get(name)} in the model and {want.get(name)} in the bundle"


def has_shapes(model: nn.Module, shapes: Iterable[Shape]) -> bool:
    """Whether a model has parameters of these shapes, under any names, but for one: a stem may have other channels."""
    have = Counter(map(_plain, _shapes(model).values()))
    return (Counter(map(_plain, shapes)) - have).total() <= 1


def may_match(model: nn.Module, body: nn.Module) -> bool:
    """Whether a model has the shapes of a body, under any names; the body may have no values."""
    return bool(_possible_heads(model, _wanted(model, body)))


def match_body(model: nn.Module, body: nn.Module, size: int) -> Match | None:
    """How the body of a bundle for images of `size` pixels fits a model; None: it does not.

    Parameters of equal names and shapes are the same ones. Else modules are paired in the order in which they are run,
    and that is believed only where both then give equal features of noise, which a model may scale and shift first.
    What is in the head's place may have layers of its own before the last.
    """
    wanted = _wanted(model, body)
    possible = _possible_heads(model, wanted)
    for head in possible:
        if _shapes(model, head) == wanted.shapes:
            return replace(wanted, hidden=_hidden(model, head))
    for head in possible:
        try:
            match = _match_by_order(working_copy(model, "cpu"), _shaken(body), wanted, size, head)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError, LookupError, AttributeError, ModelError):
            # of a model that cannot take such images, or whose layers are called with something else
            continue
        if match is not None:
            return replace(match, hidden=_hidden(model, head))
    return None


def _heads(model: nn.Module) -> list[str]:
    """Names of the classifier and of the modules around it: a user may have put any of these in a head's place."""
    parts = find_classifier(model).name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _possible_heads(model: nn.Module, wanted: Match) -> list[str]:
    """Those without which the model has the body's shapes."""
    want = Counter(map(_plain, wanted.shapes.values()))
    return [head for head in _heads(model) if Counter(map(_plain, _shapes(model, head).values())) == want]


def _hidden(model: nn.Module, head: str) -> tuple[str, ...]:
    inside = _shapes(model).keys() - _shapes(model, head).keys()
    return tuple(sorted({name.rpartition(".")[0] for name in inside}))


def _match_by_order(model: nn.Module, body: nn.Module, wanted: Match, size: int, head: str) -> Match | None:
    """As `match_body`; both get other weights. BatchNorm's eps, in which libraries differ, is set alike for this."""
    stem = _first_convolution(model)
    channels = 3 if stem is None else stem[1].in_channels
    give_copies(model)
    noise = torch.randn(IMAGES, channels, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = _in_order(model, noise, head), _in_order(body, wanted.images(noise))
    pairs = [(model.get_submodule(a), body.get_submodule(b)) for a, b in zip(ours, theirs, strict=False)]
    names = {
        f"{b}.{k}".lstrip("."): f"{a}.{k}".lstrip(".")
        for a, b, (_, module) in zip(ours, theirs, pairs, strict=False)
        for k, _ in module.named_parameters(recurse=False)
    }
    have = _shapes(model, head)
    if names.keys() != wanted.shapes.keys() or set(names.values()) != have.keys():
        return None
    if any(_plain(have[a]) != _plain(wanted.shapes[b]) for b, a in names.items()):
        return None
    match = replace(wanted, names=names, shapes={b: have[a] for b, a in names.items()})
    for name, value in match.parameters(dict(body.named_parameters())).items():
        model.get_parameter(name).copy_(value)  # parameters of a working copy have no gradient
    for a, b in pairs:
        for name, buffer in b.named_buffers(recurse=False):
            a.register_buffer(name, buffer)
        if is_norm(a) and is_norm(b):
            a.eps = b.eps
    found = extract_features(model, noise) if head == find_classifier(model).name else _given(model, head, noise)
    if _gives(body, match.images(noise), found):
        return match
    match = replace(match, scaling=_scaling(noise, _given(model, ours[0], noise)))
    return match if match.scaling is not None and _gives(body, match.images(noise), found) else None


def _gives(body: nn.Module, images: torch.Tensor, features: torch.Tensor) -> bool:
    with evaluating(body):
        found = body(images)
    same = found.shape == features.shape and (features - found).norm() <= TOLERANCE * found.norm()  # NaN is not
    return bool(same)


def _given(model: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    """What a module is first called with."""
    given: list[torch.Tensor] = []
    with noting_inputs([model.get_submodule(name)], lambda _, x: given.append(x.clone())), evaluating(model):
        model(images)
    return given[0]


def _scaling(images: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Factors and summands [C] by which images [N, C, H, W] become what is given, as by a Normalize; None: they do
    not, or need none."""
    if given.shape != images.shape:
        return None
    x, y = (v.double().transpose(0, 1).flatten(1) for v in (images, given))
    factor = ((x - x.mean(1, keepdim=True)) * y).sum(1) / (x - x.mean(1, keepdim=True)).square().sum(1)
    summand = y.mean(1) - factor * x.mean(1)
    exact = torch.allclose(factor[:, None] * x + summand[:, None], y, rtol=TOLERANCE, atol=TOLERANCE)
    return (factor.float(), summand.float()) if exact and not torch.equal(images, given) else None


def _shapes(model: nn.Module, head: str | None = None) -> dict[str, Shape]:
    """Of a model's parameters but the head's, by default the classifier's, and those that its working copy does not
    have."""
    left_out = [find_classifier(model).name if head is None else head]
    left_out += [f"{n}.aux_bn" for n, m in model.named_modules() if isinstance(m, SplitBatchNorm2d)]
    prefixes = tuple(f"{name}." for name in left_out)
    return {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith(prefixes)}


def _wanted(model: nn.Module, body: nn.Module) -> Match:
    """The match by name, if there is one: the body's parameters, with the channels of the model's stem."""
    shapes: dict[str, Shape] = {n: tuple(p.shape) for n, p in body.named_parameters()}
    match = Match({n: n for n in shapes}, shapes)
    ours, theirs = _first_convolution(model), _first_convolution(body)
    if ours is None or theirs is None or ours[1].groups * theirs[1].groups != 1:
        return match
    channels, stem = ours[1].in_channels, f"{theirs[0]}.weight"
    if channels == theirs[1].in_channels or theirs[1].in_channels != 3:
        return match
    shapes[stem] = (shapes[stem][0], channels, *shapes[stem][2:])
    return replace(match, stem=stem, channels=channel_map(channels))


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    return next(((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)


def _plain(shape: Shape) -> Shape:
    """Without lengths of 1 at the end: a linear layer and a 1x1 convolution have the same weights."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _shaken(body: nn.Module) -> nn.Module:
    """A copy with noise on every parameter."""
    shaken, noise = copy.deepcopy(body).cpu().requires_grad_(False), torch.Generator().manual_seed(1)
    for p in shaken.parameters():
        deviation = p.std(correction=0)
        p.add_(SHAKEN * (deviation if deviation > 0 else 1.0) * torch.randn(p.shape, generator=noise))
    return shaken


def _in_order(model: nn.Module, images: torch.Tensor, skipped: str | None = None) -> list[str]:
    """Names of modules with parameters of their own, but for `skipped` and what is in it, in the order in which they
    are first run."""
    run: dict[str, None] = {}  # an ordered set
    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            is_skipped = skipped is not None and f"{name}.".startswith(f"{skipped}.")
            if not is_skipped and next(module.parameters(recurse=False), None) is not None:
                hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: run.setdefault(name)))
        model(images)
    return list(run)
