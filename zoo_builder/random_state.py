"""Random states as they were: the global ones, and those of loaders and their samplers."""

from __future__ import annotations

import functools
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


@contextmanager
def unchanged_random_state(*owners: object) -> Iterator[None]:
    """Put back the global states of Python, NumPy and torch; and of loaders among or in the `owners`, and of their
    samplers, every generator that they hold, of torch, NumPy or Python, and the numbers that the samplers hold, such as
    an epoch or an order of their own."""
    python, numpy_, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    loaders, samplers = _loaders_and_samplers(owners)
    held = [value for part in (*loaders, *samplers) for value in _attributes(part).values()]
    states = [put_back for value in held if (put_back := _state_of(value)) is not None]
    states += [put_back for sampler in samplers for put_back in _numbers_of(_attributes(sampler))]
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


def _attributes(part: object) -> dict[str, Any]:
    return getattr(part, "__dict__", {})


def _loaders_and_samplers(owners: Iterable[object]) -> tuple[list[object], list[object]]:
    """The owners and the loaders that they hold, however deep; the samplers of these, and those in other samplers."""
    loaders: dict[int, object] = {}
    samplers: dict[int, object] = {}
    waiting = [(owner, loaders) for owner in owners]
    while waiting:
        part, found = waiting.pop()
        if id(part) in found:
            continue
        found[id(part)] = part
        for name, value in _attributes(part).items():
            if name in ("sampler", "batch_sampler") or isinstance(value, Sampler):
                waiting.append((value, samplers))
            elif name == "loader" or any(isinstance(v, DataLoader) for v in (value, *_attributes(value).values())):
                waiting.append((value, loaders))
    return list(loaders.values()), list(samplers.values())


CONTAINERS = {list, dict, defaultdict, OrderedDict, Counter, np.ndarray, torch.Tensor}


def _numbers_of(held: dict[str, Any]) -> Iterator[Callable[[], object]]:
    """What puts back the numbers among attributes, those in containers there, and those in containers in these."""
    numbers = {
        name: value for name, value in held.items() if isinstance(value, int | float) or type(value) in CONTAINERS
    }
    yield functools.partial(held.update, numbers)
    for value in numbers.values():
        yield from _contents_of(value)
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not CONTAINERS.isdisjoint(map(type, inside)):
            for inner in inside:
                # Else it is an item of a list that is the dataset.
                if not isinstance(inner, list) or all(issubclass(kind, Number) for kind in set(map(type, inner))):
                    yield from _contents_of(inner)


def _contents_of(value: Any) -> Iterator[Callable[[], object]]:
    """What puts back a container as it is now, in place; of arrays those that may be indices, which images are not."""
    if type(value) not in CONTAINERS:
        return
    if isinstance(value, dict | list):
        yield functools.partial(_put_back, value, value.copy())
    elif value.ndim == 1 and value.dtype in (np.int32, np.int64, torch.int32, torch.int64):
        yield functools.partial(_put_back, value, value.copy() if isinstance(value, np.ndarray) else value.clone())


def _put_back(value: Any, contents: Any) -> None:
    if isinstance(value, dict):
        value.clear()
        value.update(contents)
    elif isinstance(value, list) or (value != contents).any():  # what does not change may be a file's, and not writable
        value[:] = contents


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
