"""What `initialize()` is asked for: checked before anything is read."""

from __future__ import annotations

import contextlib
import math
import operator
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import nn

from zoo_builder.errors import BundleError, ModelError, RecipeError, nearest_names

Head = Literal["auto", "solve", "generate", "keep", "fresh"]
SEEDS = (-(2**63), 2**64 - 1)  # that torch takes


def check_is_model(model: Any, train_loader: Any) -> None:
    """
    Raises:
        ModelError: `model` is none of torch's.
    """
    if isinstance(model, nn.Module):
        return
    came = f"{type(model).__name__} {model!r:.80}"
    advice = "Make one, as timm.create_model(name, num_classes=...) does."
    if isinstance(train_loader, nn.Module):
        advice = "The model comes first, and then the loader."
    raise ModelError(f"Expected a model, a torch.nn.Module, got {came}. {advice}")


def whole_number(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """`value` as Python's own, which torch and JSON take; NumPy's it may be.

    Raises:
        RecipeError: it is none, or out of range.
    """
    try:
        number = int(operator.index(value))
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        expected = f"{least} or more" if most is None else f"of {least} to {most}"
        raise RecipeError(f"{name} must be a whole number, {expected}; got {value!r}.")
    return number


def check_head(head: Any) -> None:
    """
    Raises:
        RecipeError: it is unknown. BundleError: no bundle can do that.
    """
    known = get_args(Head)
    if not isinstance(head, str) or head not in known:
        raise RecipeError(f"unknown head {head!r}; {nearest_names(str(head), known)}")
    if head == "generate":
        raise BundleError(
            "No bundle has a generator of class heads. Pass head='solve': a head in closed form, of the same images."
        )


def check_budget(budget: Any) -> None:
    """
    Raises:
        RecipeError: it is no number of seconds.
    """
    with contextlib.suppress(OverflowError):  # of an int that no float holds
        if budget is None or (isinstance(budget, Real) and not math.isnan(budget)):
            return
    raise RecipeError(f"budget must be a number of seconds, or None for no end; got {budget!r:.40}.")


def check_device(device: Any) -> None:
    """
    Raises:
        RecipeError: torch knows none of this name, or cannot compute on it.
    """
    if device is None:
        return
    try:
        usable = torch.empty(0, device=device).device.type != "meta"
        reason = "which holds no values"
    except (RuntimeError, AssertionError, TypeError) as e:
        usable, reason = False, str(e).split("\n")[0]
    if not usable:
        raise RecipeError(
            f"device must be one that torch can compute on here, as 'cpu' or 'cuda'; got {device!r} ({reason})."
        )
