"""The most memory that this process held while something ran; on Linux, elsewhere None."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d2nwg_init.stages import most_resident_bytes

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
