"""The door into torchvision: an object that its model builders take for one of their own weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from d2nwg_init.bridges.dataset_classes import num_classes_of
from d2nwg_init.bridges.model_name import check_is_name
from d2nwg_init.hook import initialize
from d2nwg_init.report import InitReport
from d2nwg_init.undo import copied_state
from zoo_builder.backbones import torchvision_classifiers
from zoo_builder.errors import ModelError, nearest_names


def weights(
    model_name: str,
    train_loader: Iterable[Any],
    *,
    num_classes: int | None = None,
    init: Mapping[str, Any] | None = None,
    **model_args: Any,
) -> Any:
    """For torchvision.models.get_model(model_name, weights=HERE, **model_args): weights initialised for the loader's
    images, head included. The builder takes the number of classes from them. Where no bundle covers the model, and no
    embedded one does, its body is untrained: give a pretrained model to `initialize` instead.

    Args:
        num_classes: by default what the loader's dataset says.
        init: arguments of `initialize`.

    Returns:
        A member of the model's weights enum, with no name in it; its `init_report` tells what was done.

    Raises:
        As `initialize` does. ModelError: torchvision has no such classifier.
    """
    import torchvision

    check_is_name(model_name, train_loader)
    if model_name not in torchvision_classifiers():
        raise ModelError(
            f"torchvision has no classifier {model_name!r}; {nearest_names(model_name, torchvision_classifiers())}"
        )
    classes = num_classes_of(train_loader) if num_classes is None else num_classes
    if model_name in ("googlenet", "inception_v3"):
        model_args.setdefault("transform_input", True)  # as their builders do where weights are given
    model = torchvision.models.get_model(model_name, weights=None, num_classes=classes, **model_args)
    report = initialize(model, train_loader, **(init or {}))
    return _member(model_name, copied_state(model), dataclasses.replace(report, undo=None))


def _member(model_name: str, state: dict[str, Any], report: InitReport) -> Any:
    import torchvision

    # A foreign class is refused by the builders, and a copy of a member would download its own weights.
    enum = torchvision.models.get_model_weights(model_name)
    default: Any = enum.DEFAULT.value  # type: ignore[attr-defined]
    made = object.__new__(enum)
    made._name_ = "GENERATED"
    made._value_ = type(default)(
        url="",
        transforms=functools.partial(_preset, default.transforms, *report.image_shape[1:]),
        meta={"categories": [str(i) for i in range(report.num_classes)], "min_size": report.image_shape[1:]},
    )
    made.get_state_dict = lambda *_, **__: state  # type: ignore[method-assign]
    made.init_report = report  # type: ignore[attr-defined]
    # pickle would look its value up among the members
    made.__reduce_ex__ = lambda _: (_member, (model_name, state, report))  # type: ignore[method-assign]
    return made


def _preset(transforms: Callable[..., Any], height: int, width: int, **changes: Any) -> Any:
    """The model's own preset, for images as large as those that were read."""
    preset = transforms(**changes)
    size = [height] if height == width else [height, width]  # one side keeps the proportions of what is resized
    for name in {"crop_size", "resize_size"} - changes.keys():
        setattr(preset, name, size)
    return preset
