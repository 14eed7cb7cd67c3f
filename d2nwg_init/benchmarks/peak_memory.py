"""The most memory that this process held while something ran; on Linux, elsewhere None."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    before = _most_resident()
    yield peak
    peak.bytes = _most_resident()
    peak.gained = peak.bytes - before


def _most_resident() -> int:
    """Bytes, since the peak was begun anew."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
