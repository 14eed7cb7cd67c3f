"""A base that a bundle leaves out, for it may not be passed on: named by a hash, and taken from the user's model.

The hash is over half precision: a float32 checkpoint, its half-precision copy and the base that a bundle was trained
with are one base, and what a bundle works with is the half-precision values, whichever of them it was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from zoo_builder.backbones import body_state
from zoo_builder.errors import BundleError


class BaseMissing(BundleError):
    """The bundle leaves its base out, and what it was given is not that base."""


@dataclass(frozen=True)
class BaseElsewhere:
    sha256: str  # `body_sha256` of it
    source: str  # where the user gets it, in words


def body_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Of a body's floating-point tensors, buffers too, in the order of their names: for each the name, a zero byte, its
    lengths in decimal parted by commas, a zero byte, and its values as little-endian float16 in row-major order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if tensor.is_floating_point():
            digest.update(f"{name}\0{','.join(map(str, tensor.shape))}\0".encode())
            digest.update(tensor.detach().cpu().half().contiguous().numpy().astype("<f2", copy=False).tobytes())
    return digest.hexdigest()


def take_base(
    wanted: BaseElsewhere, body: Mapping[str, torch.Tensor], given: nn.Module | None, bundle: str
) -> dict[str, torch.Tensor]:
    """The body of `given`, a model with or without its head, as the base's state dict, in float32 of half precision.

    `body` has its names and shapes; `bundle` is for messages.

    Raises:
        BaseMissing: nothing was given, or it is not the base that is wanted.
    """
    needs = (
        f"The bundle {bundle!r} does not hold the base that it generates deltas to. Get that base ({wanted.source}; "
        f"SHA-256 of its tensors {wanted.sha256})"
    )
    if given is None:
        raise BaseMissing(f"{needs} and pass the model that has it, as base=model, or to initialize().")
    state = {k: v for k, v in body_state(given).items() if k in body}
    shapes = [{k: v.shape for k, v in tensors.items()} for tensors in (state, body)]
    if shapes[0] != shapes[1] or body_sha256(state) != wanted.sha256:
        raise BaseMissing(
            f"{needs}: the body of this {type(given).__name__} is another. Create the model with that checkpoint, and "
            "pass it before any training."
        )
    return {k: v.detach().cpu().half().float() if v.is_floating_point() else v.cpu() for k, v in state.items()}
