"""Three doors into timm: a create_model of our own, timm's pretrained_cfg_overlay, and pretrained=True in a block."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from d2nwg_init.bridges.dataset_classes import num_classes_of
from d2nwg_init.bundles import find_bundle
from d2nwg_init.hook import initialize
from d2nwg_init.report import InitReport
from zoo_builder.errors import ModelError


def create_model(
    model_name: str,
    train_loader: Iterable[Any],
    *,
    num_classes: int | None = None,
    init: Mapping[str, Any] | None = None,
    **timm_args: Any,
) -> nn.Module:
    """timm.create_model(model_name, num_classes=..., **timm_args), initialised for the loader's images.

    Args:
        num_classes: by default what the loader's dataset says.
        init: arguments of `initialize`.

    Returns:
        The model; its `init_report` tells what was done (it cannot revert).

    Raises:
        As `initialize` does. DataError: the number of classes is not to be found.
    """
    import timm

    classes = num_classes_of(train_loader) if num_classes is None else num_classes
    model = timm.create_model(model_name, num_classes=classes, **timm_args)
    report = initialize(model, train_loader, **(init or {}))
    model.init_report = dataclasses.replace(report, undo=None)  # type: ignore[assignment]
    return model


def pretrained_cfg(
    model_name: str,
    train_loader: Iterable[Any],
    *,
    num_classes: int | None = None,
    init: Mapping[str, Any] | None = None,
    **timm_args: Any,
) -> dict[str, Any]:
    """What timm.create_model(model_name, pretrained=True, num_classes=..., pretrained_cfg_overlay=HERE) takes, head
    included; the other arguments must be the same there. timm keeps a copy of the weights in model.pretrained_cfg.

    Arguments and errors are those of `create_model`.
    """
    model = create_model(model_name, train_loader, num_classes=num_classes, init=init, **timm_args)
    report: InitReport = model.init_report  # type: ignore[assignment]
    return {
        "state_dict": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "num_classes": report.num_classes,
        "input_size": report.image_shape,
        **dict.fromkeys(("url", "hf_hub_id", "file", "source", "tag", "label_offset")),
        "custom_load": False,
    }


@contextmanager
def pretrained(train_loader: Iterable[Any], **init: Any) -> Iterator[list[InitReport]]:
    """Inside, timm.create_model(..., pretrained=True) gives models that are initialised for the loader's images.

    A model that a bundle covers begins with random weights and downloads nothing: the bundle's base takes the place of
    the pretrained weights. Any other gets timm's pretrained weights, downloaded as ever, refined where
    `initialize` does that, and a head is solved on them.

    A body without a head (num_classes=0) is timm's own affair.

    Args:
        init: arguments of `initialize`.

    Yields:
        The reports, one a model, in the order of creation.
    """
    from timm.models import _builder  # no public hook runs between timm's building and its loading of weights

    load = getattr(_builder, "load_pretrained", None)
    if load is None:
        raise ModelError(
            "This version of timm has no timm.models._builder.load_pretrained. Use d2nwg_init.create_model(...)."
        )
    reports: list[InitReport] = []

    def load_or_generate(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if not getattr(model, "num_classes", None):
            return load(model, *args, **kwargs)  # a body alone
        bundle, reason = find_bundle(model, init.get("generator", "auto"))
        if bundle is None:
            load(model, *args, **kwargs)  # the body may now be the base of a bundle that leaves its base out
            reports.append(initialize(model, train_loader, **init))
        else:
            report = initialize(model, train_loader, **init | {"generator": bundle})
            reports.append(dataclasses.replace(report, reason=reason))

    _builder.load_pretrained = load_or_generate
    try:
        yield reports
    finally:
        _builder.load_pretrained = load
    if not reports:
        warnings.warn("No model was made by timm with pretrained=True: nothing was initialised.", stacklevel=3)
