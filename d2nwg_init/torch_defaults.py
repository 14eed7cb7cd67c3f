"""Torch's own defaults, whatever the user has set: what is made here belongs on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

CASTING = ("cpu", "cuda", "mps", "xpu")  # where autocast may be open


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Default device and dtype, and no autocast of the caller's. One that a model opens itself keeps no weights: within
    the caller's they would be those of before the first step of a training."""
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    casting, cached = [t for t in CASTING if torch.is_autocast_enabled(t)], torch.is_autocast_cache_enabled()
    torch.set_default_dtype(torch.float32)
    for t in casting:
        torch.set_autocast_enabled(t, False)
    torch.set_autocast_cache_enabled(False)
    try:
        with nullcontext() if device.type == "cpu" else torch.device("cpu"):  # which every call of torch goes through
            yield
    finally:
        torch.set_default_dtype(dtype)
        for t in casting:
            torch.set_autocast_enabled(t, True)
        torch.set_autocast_cache_enabled(cached)
