"""What a library is asked for by its name."""

from __future__ import annotations

from typing import Any

from zoo_builder.errors import ModelError


def check_is_name(model_name: Any, train_loader: Any) -> None:
    """
    Raises:
        ModelError: `model_name` is no name.
    """
    if isinstance(model_name, str):
        return
    advice = "Pass initialize() a model that is made already."
    if isinstance(train_loader, str):
        advice = "The name comes first, and then the loader."
    elif isinstance(own := getattr(model_name, "__name__", None), str):  # of a builder
        advice = f"Pass {own!r}."
    raise ModelError(
        f"Expected a model's name, as 'resnet18', got {type(model_name).__name__} {model_name!r:.80}. {advice}"
    )
