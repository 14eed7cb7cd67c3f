"""Whether two names, of whatever sources, name one dataset."""

from __future__ import annotations

from collections.abc import Iterable


def is_among(name: str, names: Iterable[str]) -> bool:
    """Whether `name` is one of `names`: torchvision:CIFAR10, hf:uoft-cs/cifar10@0b2714e, cifar10.npz, data/cifar10/ and
    cifar10 are one dataset."""
    return _plain_name(name) in map(_plain_name, names)


def _plain_name(name: str) -> str:
    last = name.partition("?")[0].partition("@")[0].rpartition(":")[2].rstrip("/").rpartition("/")[2]
    return "".join(c for c in last.casefold().removesuffix(".npz") if c.isalnum())
