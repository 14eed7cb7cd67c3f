"""Three doors into timm: a create_model of our own, timm's pretrained_cfg_overlay, and pretrained=True in a block."""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from torch import nn

from d2nwg_init.bridges.dataset_classes import num_classes_of
from d2nwg_init.bridges.model_name import check_is_name
from d2nwg_init.bundles import find_bundle
from d2nwg_init.hook import initialize
from d2nwg_init.report import InitReport
from zoo_builder.errors import ModelError

PLACES = ("state_dict", "file", "url", "hf_hub_id", "hf_hub_filename")  # of weights, in timm's pretrained_cfg
NAMED = "the weights named to timm were loaded first, and compete as the model's own"


def create_model(
    model_name: str,
    train_loader: Iterable[Any],
    *,
    num_classes: int | None = None,
    init: Mapping[str, Any] | None = None,
    **timm_args: Any,
) -> nn.Module:
    """timm.create_model(model_name, num_classes=..., **timm_args), initialised for the loader's images. Where no bundle
    covers the model its body is untrained, unless pretrained=True is among `timm_args`.

    Args:
        num_classes: by default what the loader's dataset says.
        init: arguments of `initialize`.

    Returns:
        The model; its `init_report` tells what was done (it cannot revert).

    Raises:
        As `initialize` does. DataError: the number of classes is not to be found. ModelError: `model_name` is no name.
    """
    import timm

    check_is_name(model_name, train_loader)
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
    timm's pretrained weights. Weights that the user names (local-dir:, hf-hub:, a file, a state dict, another address,
    a checkpoint_path) are loaded first and compete as the model's own. Any other model gets timm's pretrained weights,
    downloaded as ever, refined where `initialize` does that, and a head is solved on them.

    A body without a head (num_classes=0, features_only=True) is timm's own affair, and so is a model that another
    thread makes. Of blocks in each other the innermost counts.

    Args:
        init: arguments of `initialize`.

    Yields:
        The reports, one a model, in the order of creation.
    """
    block = _Block(train_loader, init)
    _open(block)
    try:
        yield block.reports
    finally:
        _close(block)
    if not block.reports:
        warnings.warn("No model was made by timm with pretrained=True: nothing was initialised.", stacklevel=3)


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    train_loader: Iterable[Any]
    init: Mapping[str, Any]
    reports: list[InitReport] = dataclasses.field(default_factory=list)


# Blocks may overlap, of threads and of generators: timm's function is replaced while any is open, once, and what takes
# its place asks which are open where it is called.
_lock = threading.Lock()
_all_open: list[_Block] = []
_open_here: ContextVar[tuple[_Block, ...]] = ContextVar("open blocks of pretrained()", default=())


def _open(block: _Block) -> None:
    with _lock:
        if not _all_open:
            for where, name, instead in _replaced():
                setattr(where, name, functools.partial(instead, getattr(where, name)))
        _all_open.append(block)
    _open_here.set((*_open_here.get(), block))


def _close(block: _Block) -> None:
    _open_here.set(tuple(b for b in _open_here.get() if b is not block))
    with _lock:
        _all_open.remove(block)
        if not _all_open:
            for where, name, _ in _replaced():
                setattr(where, name, getattr(where, name).args[0])


def _replaced() -> tuple[tuple[ModuleType, str, Callable[..., Any]], ...]:
    """Functions of timm's, and what takes their place: no public hook runs where it loads weights."""
    from timm.models import _builder, _factory

    replaced = ((_builder, "load_pretrained", _load_or_generate), (_factory, "load_checkpoint", _load_and_initialize))
    for where, name, _ in replaced:
        if not hasattr(where, name):
            raise ModelError(f"This version of timm has no {where.__name__}.{name}. Use d2nwg_init.create_model(...).")
    return replaced


def _load_or_generate(load: Callable[..., None], model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """In place of timm's `load`: the innermost block that is open here initialises the model."""
    num_classes = kwargs.get("num_classes", getattr(model, "num_classes", 0))  # 0 of features_only too
    if not _open_here.get() or not num_classes:
        return load(model, *args, **kwargs)
    block = _open_here.get()[-1]
    if _are_named(model.pretrained_cfg):  # type: ignore[arg-type]
        return _load_named(block, load, model, *args, **kwargs)
    bundle, reason = find_bundle(model, block.init.get("generator", "auto"))
    if bundle is None:
        load(model, *args, **kwargs)  # the body may now be the base of a bundle that leaves its base out
        block.reports.append(initialize(model, block.train_loader, **block.init))
    else:
        report = initialize(model, block.train_loader, **{**block.init, "generator": bundle})
        block.reports.append(dataclasses.replace(report, reason=reason))


def _load_and_initialize(load: Callable[..., Any], model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """In place of timm's `load` of a checkpoint_path, which comes last and would overwrite the weights of a model that
    the innermost block has initialised: it is initialised anew, from the checkpoint's. That there is one is not told to
    any function of timm's before."""
    block = next(reversed(_open_here.get()), None)
    undo = block.reports[-1].undo if block and block.reports else None
    if block is None or undo is None or undo.model is not model:
        return load(model, *args, **kwargs)
    block.reports.pop()
    _load_named(block, load, model, *args, **kwargs)


def _load_named(block: _Block, load: Callable[..., Any], model: nn.Module, *args: Any, **kwargs: Any) -> None:
    load(model, *args, **kwargs)
    report = initialize(model, block.train_loader, **block.init)
    block.reports.append(dataclasses.replace(report, notes=(*report.notes, NAMED)))


def _are_named(pretrained_cfg: Mapping[str, Any]) -> bool:
    """Whether the user said where the weights are: it is no place that timm itself knows for this architecture."""
    from timm.models import get_arch_pretrained_cfgs

    if pretrained_cfg.get("source") in ("local-dir", "hf-hub"):  # of the model's name
        return True
    known = get_arch_pretrained_cfgs(pretrained_cfg.get("architecture") or "").values()
    told = {place: pretrained_cfg.get(place) for place in PLACES}
    return any(value and all(getattr(cfg, place) != value for cfg in known) for place, value in told.items())
