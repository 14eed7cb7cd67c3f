"""Which bodies of a bundle are tried on a model, and until when."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from d2nwg_init.candidates import FINALISTS, Body, generated_bodies
from d2nwg_init.matching import match_body
from pretrained_generators.bundle import Bundle
from pretrained_generators.weight_layout import parameters_in_scope
from zoo_builder.absorbed_statistics import can_absorb
from zoo_builder.support_set import SupportSet

NEARLY = 1e-3  # of the largest weight of a layer: bundles hold half precision
OTHER_SIZE = 2  # times larger or smaller: the report says so


class PlannedBodies:
    """The bundle's base, unless the model has it (`own_is_base`), and the best of its probes and `samples` samples, or,
    unless `screen`, the first sample alone; restricted to the parameters of a scope, of which `names` are the body's.
    `absorbing`: BatchNorm of the base absorbs the statistics of the images.

    Raises:
        RecipeError: an unknown scope. ModelError: a module in it that is not there.
    """

    def __init__(
        self, model: nn.Module, bundle: Bundle | None, scope: str | Sequence[str], samples: int, screen: bool
    ) -> None:
        chosen = parameters_in_scope(model, "body" if scope == "auto" else scope)
        self.names = chosen - parameters_in_scope(model, "head")
        generator = bundle.generator if bundle else None
        self._match = match_body(model, generator.base, generator.config.size) if generator else None
        self.absorbing = generator is not None and generator.config.batchnorm == "absorbed"
        fits = not self.absorbing or can_absorb(model, self.names)
        self._generator = generator if self.names and fits and self._match else None
        self._samples, self._screen = samples if screen else min(1, samples), screen
        drafted = self._generator.config.probes + self._samples if self._generator else 0
        self._finalists = min(FINALISTS, drafted) if screen else drafted
        self.own_is_base = False
        if generator and self._match:
            self.own_is_base = _alike(model, self._match.parameters(generator.base_parameters()))
        tried = self._finalists if screen else self._samples
        self.size = tried + (not self.own_is_base) if self._generator else 0
        self.notes: list[str] = list(self._match.notes) if self._generator and self._match else []
        if bundle and not self.names:
            self.notes.append("nothing was generated: the scope holds no parameter of the body")
        elif bundle and not fits:
            self.notes.append("nothing was generated: the bundle's base needs all BatchNorm weights in the scope")
        elif bundle and not self._match:
            self.notes.append("nothing was generated: the bundle's parameters are not found in the model any more")

    def seen(self, support: SupportSet) -> SupportSet:
        """The images as the bundle's base takes them."""
        return replace(support, images=self._match.images(support.images)) if self._match else support

    def until(self, deadline: float | None, support: SupportSet, seed: int) -> Iterator[Body]:
        """None is begun after `deadline`, on the clock of time.perf_counter; `notes` tell what was not tried."""
        if self._generator is None or self._match is None:
            return
        size, sides = self._generator.config.size, support.images.shape[2:]
        if any(max(size, side) >= OTHER_SIZE * min(size, side) for side in sides):
            theirs = "x".join(map(str, sides))
            self.notes.append(f"the bundle is for images of {size}x{size} pixels, and these have {theirs}")
        bodies = generated_bodies(self._generator, self.seen(support), self._samples, seed, self._finalists)
        if not self._screen:  # the first sample is taken, whatever it is worth
            bodies = (body for body in bodies if body.kind != "probe")
        if self.own_is_base:
            next(bodies)
        for i in range(self.size):
            if is_past(deadline):
                self.notes.append(f"the budget ended before {self.size - i} of {self.size} bodies were tried")
                return
            body = next(bodies)
            parameters = self._match.parameters(body.parameters)
            yield replace(body, parameters={k: v for k, v in parameters.items() if k in self.names})


def is_past(deadline: float | None) -> bool:
    return deadline is not None and time.perf_counter() >= deadline


def _alike(model: nn.Module, parameters: Mapping[str, torch.Tensor]) -> bool:
    """Whether a model has these parameters, but for rounding."""
    own = {name: p.detach() for name, p in model.named_parameters()}
    return all(bool((own[k].cpu() - v).abs().max() <= NEARLY * v.abs().max()) for k, v in parameters.items())
