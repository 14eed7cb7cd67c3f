"""Which bundle fits a model: by its parameters and what is done with them, not by the model's name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from d2nwg_init.matching import first_misfit, has_shapes, match_body, may_match
from pretrained_generators.base_elsewhere import BaseMissing
from pretrained_generators.bundle import Bundle, described_body, embedded_bundles, load_bundle, load_config
from pretrained_generators.generator import Generator
from pretrained_generators.hub import locate
from zoo_builder.errors import BundleError


def find_bundle(model: nn.Module, generator: str | Path | Bundle | Generator | None) -> tuple[Bundle | None, str]:
    """The bundle to use and why; "auto" looks through the embedded ones, None generates nothing.

    A bundle of the Hub is taken from the cache and never fetched. One that leaves its base out takes the model's body
    as the base.

    Raises:
        BundleError: a bundle was asked for by name or path and does not exist, or does not fit the model.
    """
    if generator is None:
        return None, "no generator was asked for"
    if isinstance(generator, Generator):
        if generator.bundle is None:
            raise BundleError("This generator is of no bundle. Save it with save_bundle() and pass the folder.")
        generator = Bundle(generator.bundle, generator)
    if not isinstance(generator, Bundle) and generator != "auto":
        folder, blobs = locate(generator, local_files_only=True)
        generator = load_bundle(folder, model, blobs)
    if isinstance(generator, Bundle):
        _check_fit(model, generator)
        return generator, "the bundle that was asked for"
    covered, lacking, misfits = [], [], []
    for name in embedded_bundles():
        config = load_config(name)
        covered.append(config.generator.backbone.model)
        if not has_shapes(model, (b.shape for b in config.generator.layout.blocks)):
            continue  # what is most often so is seen before a body is laid out
        try:
            bundle = load_bundle(name, model)
        except BaseMissing as e:
            if may_match(model, described_body(config.generator, Path(name))):
                lacking.append(str(e))
            continue
        if match_body(model, bundle.generator.base, bundle.generator.config.size):
            return bundle, "its parameters match this model's"
        misfit = first_misfit(model, bundle.generator.base)
        misfits.append(f"{name} is of {covered[-1]} and does not fit this {type(model).__name__}: {misfit}")
    reasons = [*lacking, *(misfits and ["; ".join(misfits)])] or [
        f"no embedded bundle covers this architecture (covered: {', '.join(covered)})"
    ]
    return None, f"nothing was generated: {' '.join(reasons)}"


def _check_fit(model: nn.Module, bundle: Bundle) -> None:
    config, base = bundle.config, bundle.generator.base
    kinds = {(str(t.device), t.dtype) for t in bundle.generator.state_dict().values() if t.is_floating_point()}
    if kinds != {("cpu", torch.float32)}:
        came = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise BundleError(
            f"The generator of {config.name!r} is in {came}, expected torch.float32 on cpu: pass it as it was read. "
            "Where initialize() computes is told by its `device`."
        )
    if match_body(model, base, bundle.generator.config.size) is None:
        raise BundleError(
            f"The bundle {config.name!r} generates weights of {config.generator.backbone.model}, which do not fit this "
            f"{type(model).__name__}: {first_misfit(model, base)}. Pass a model of that kind, or another bundle."
        )
