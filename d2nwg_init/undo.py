"""All or nothing: a model's state as it was, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zoo_builder.attention_cache import forget_biases


class Undo:
    """The state dict of `model`, copied when this is made. Holds both; the module modes are not part of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state: Mapping[str, Any] = copied_state(model)

    def __call__(self) -> None:
        set_state(self.model, self.state)


def set_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    model.load_state_dict(state)
    forget_biases(model)


def copied_state(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()  # kept as it is, for its versions: without them some models (mnasnet) take nothing back
    for k, v in state.items():
        state[k] = v.detach().clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v)
    return state


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[Undo]:
    """Whatever ends the block early, Ctrl-C too, leaves the model's state bit for bit as it was."""
    undo = Undo(model)
    try:
        yield undo
    except BaseException:
        undo()
        raise
