"""Which versions made something."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Of this library, torch and timm; one that lies in a folder and was never installed has none to tell."""
    return {name: _version(name) for name in ("d2nwg-init", "torch", "timm")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
