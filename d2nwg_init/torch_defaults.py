"""Torch's own default device and dtype, whatever the user has set: what is made here belongs on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if device.type == "cpu" else torch.device("cpu"):  # which every call of torch goes through
            yield
    finally:
        torch.set_default_dtype(dtype)
