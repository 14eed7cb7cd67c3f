"""The most memory that a process held while something ran; on Linux, elsewhere None."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from d2nwg_init.resident_memory import most_resident_bytes

RESET_PEAK = "5"  # what proc(5) has written to clear_refs to begin the peak anew


class Peak:
    bytes: int | None = None  # resident, of the whole process; known when the context ends
    gained: int | None = None  # over what it held before


@contextmanager
def peak_memory() -> Iterator[Peak]:
    peak = Peak()
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError:
        yield peak
        return
    before = most_resident_bytes()
    yield peak
    peak.bytes = most_resident_bytes()
    if before is not None and peak.bytes is not None:
        peak.gained = peak.bytes - before


def gained_alone(prepare: Callable[[], Callable[[], object]]) -> int | None:
    """What a process of its own gains while that runs which `prepare`, whose own memory does not count, gives. In one
    that has run something before, memory that was freed would serve again and not be counted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_gained, prepare).result()


def _gained(prepare: Callable[[], Callable[[], object]]) -> int | None:
    run = prepare()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # of glibc: what preparing has freed would serve again too
    with peak_memory() as peak:
        run()
    return peak.gained
