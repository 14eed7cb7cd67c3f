"""What modules are called with, while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def noting_inputs(modules: Iterable[nn.Module], note: Callable[[Any, torch.Tensor], None]) -> Iterator[None]:
    """Inside, `note` gets each of the modules and its first argument, by position or keyword, before it is called."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(
                module.register_forward_pre_hook(
                    lambda called, args, kwargs: note(called, [*args, *kwargs.values()][0]), with_kwargs=True
                )
            )
        yield
