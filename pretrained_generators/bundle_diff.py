"""What differs between two bundles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from pretrained_generators.bundle_config import BundleConfig
from pretrained_generators.bundle_files import WEIGHTS
from pretrained_generators.hub import locate, verify_bundle
from zoo_builder.checkpoint import read_tensors

RENEWED = ("files",)  # they differ where anything else does


def compare_bundles(first: str | Path, second: str | Path) -> dict[str, tuple[object, object]]:
    """Key of config.json, or `tensor NAME` -> its two values; only those that differ, None where there is none.

    For tensors of equal shape the values are 0 and the largest absolute difference, else the shapes.

    Raises:
        BundleError: one of them is not there or not sound.
    """
    configs = [_flat(verify_bundle(s, local_files_only=True)) for s in (first, second)]
    keys = dict.fromkeys([*configs[0], *configs[1]])
    found: dict[str, tuple[object, object]] = {
        k: (configs[0].get(k), configs[1].get(k)) for k in keys if configs[0].get(k) != configs[1].get(k)
    }
    a, b = (read_tensors(locate(s, local_files_only=True)[0] / WEIGHTS)[0] for s in (first, second))
    for name in dict.fromkeys([*a, *b]):
        shapes = [list(t[name].shape) if name in t else None for t in (a, b)]
        if shapes[0] != shapes[1]:
            found[f"tensor {name}"] = (shapes[0], shapes[1])
        elif not torch.equal(a[name], b[name]):
            found[f"tensor {name}"] = (0, (a[name].double() - b[name].double()).abs().max().item())
    return found


def _flat(config: BundleConfig) -> dict[str, object]:
    return dict(_leaves("", {k: v for k, v in asdict(config).items() if k not in RENEWED}))


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list | tuple) and any(isinstance(v, dict) for v in value):
        for v in value:  # datasets and blocks, by their names
            yield from _leaves(f"{key}.{v['name']}", {k: x for k, x in v.items() if k != "name"})
    else:
        yield key, value
