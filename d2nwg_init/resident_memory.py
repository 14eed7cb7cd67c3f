"""How much memory a process held."""

from __future__ import annotations

from pathlib import Path


def most_resident_bytes() -> int | None:
    """Of the whole process so far, by Linux's proc(5); elsewhere None. (What getrusage tells is the parent's too.)"""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
