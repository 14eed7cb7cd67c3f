"""What each stage of a call takes: seconds, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from d2nwg_init.resident_memory import most_resident_bytes


@dataclass(frozen=True)
class Stages:
    seconds: dict[str, float] = field(default_factory=dict)
    # By how much the most memory that the process ever held grew, and the GPU's: zero for a stage that needs no more
    # than was needed before it. Empty where the system keeps no such number.
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, peak = time.perf_counter(), _peak_bytes()
        yield
        self.seconds[stage] = time.perf_counter() - began
        if peak is not None:
            self.peak_bytes[stage] = (_peak_bytes() or 0) - peak


def _peak_bytes() -> int | None:
    resident = most_resident_bytes()
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return None if resident is None else resident + gpu
