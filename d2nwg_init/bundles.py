"""Which bundle fits a model: by the names and shapes of its parameters, not by the model's name."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pretrained_generators.bundle import Bundle, embedded_bundles, load_bundle
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import BundleError


def find_bundle(model: nn.Module, generator: str | Path | Bundle | None) -> tuple[Bundle | None, str]:
    """The bundle to use and why; "auto" looks through the embedded ones, None generates nothing.

    Raises:
        BundleError: a bundle was asked for by name or path and does not exist, or does not fit the model.
    """
    if generator is None:
        return None, "no generator was asked for"
    if isinstance(generator, Bundle) or generator != "auto":
        bundle = generator if isinstance(generator, Bundle) else load_bundle(generator)
        misfit = _misfit(model, bundle)
        if misfit:
            raise BundleError(
                f"The bundle {bundle.config.name!r} generates weights of {bundle.config.generator.backbone.model}, "
                f"which do not fit this {type(model).__name__}: {misfit}. Pass a model of that kind, or another bundle."
            )
        return bundle, "the bundle that was asked for"
    covered = []
    for name in embedded_bundles():
        bundle = load_bundle(name)
        if not _misfit(model, bundle):
            return bundle, "its parameters match this model's"
        covered.append(bundle.config.generator.backbone.model)
    return None, f"nothing was generated: no embedded bundle covers this architecture (covered: {', '.join(covered)})"


def _misfit(model: nn.Module, bundle: Bundle) -> str | None:
    """The first parameter, of the body, that differs in name or shape."""
    classifier = find_classifier(model).name + "."
    have = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith(classifier)}
    want = {n: tuple(p.shape) for n, p in bundle.generator.base.named_parameters()}
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            return f"{name} is {have.get(name)} in the model and {want.get(name)} in the bundle"
    return None
