"""Options that are lists by commas."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
