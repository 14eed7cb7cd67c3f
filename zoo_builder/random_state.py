"""Random states as they were: the global ones, and those of loaders and their samplers."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler


@contextmanager
def unchanged_random_state(*owners: object) -> Iterator[None]:
    """Put back the global states of Python, NumPy and torch; and of loaders among the `owners`, and of their samplers,
    every generator that they hold, of torch, NumPy or Python, and the samplers' plain numbers, as an epoch is one."""
    python, numpy_, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    loaders = [*owners, *(getattr(o, "loader", None) for o in owners)]  # inside of timm's PrefetchLoader
    samplers = _samplers(loaders)
    held = [value for part in (*loaders, *samplers) for value in getattr(part, "__dict__", {}).values()]
    states = [put_back for value in held if (put_back := _state_of(value)) is not None]
    numbers = [(vars(s), {k: v for k, v in vars(s).items() if isinstance(v, int | float)}) for s in samplers]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        torch.set_rng_state(torch_)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for put_back in states:
            put_back()
        for held_now, before in numbers:
            held_now.update(before)


def _samplers(loaders: Iterable[object]) -> list[Any]:
    """The samplers of loaders, and those in other samplers."""
    found: dict[int, Any] = {}
    waiting = list(loaders)
    while waiting:
        for name, value in getattr(waiting.pop(), "__dict__", {}).items():
            is_sampler = name in ("sampler", "batch_sampler") or isinstance(value, Sampler)
            if is_sampler and hasattr(value, "__dict__") and id(value) not in found:
                found[id(value)] = value
                waiting.append(value)
    return list(found.values())


def _state_of(value: object) -> Callable[[], object] | None:
    """What puts back the state that a generator is in now; None of anything else."""
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    return None
