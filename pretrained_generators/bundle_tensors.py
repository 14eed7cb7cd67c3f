"""A bundle's safetensors files: the header is compared with what should be there before a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from zoo_builder.checkpoint import read_tensors
from zoo_builder.errors import BundleError

MAX_HEADER_BYTES = 4 * 2**20
MAX_TENSORS = 10_000


@dataclass(frozen=True)
class Stored:
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it


def read_header(file: Path) -> dict[str, Stored]:
    """Names, shapes and types of all tensors of a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise BundleError(f"{file} has a header of {length} bytes, more than {MAX_HEADER_BYTES}.")
    try:
        with safe_open(str(file), framework="pt") as stored:
            names = stored.keys()
            if len(names) > MAX_TENSORS:
                raise BundleError(f"{file} has {len(names)} tensors, more than {MAX_TENSORS}.")
            slices = {k: stored.get_slice(k) for k in names}
            header = {k: Stored(tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()}
    except (OSError, SafetensorError) as e:
        told = repr(str(e))  # it may quote the header
        raise BundleError(f"{file} is not a readable safetensors file ({told:.200}). Get the bundle again.") from e
    return header


def check_header(file: Path, header: Mapping[str, Stored], expected: Mapping[str, torch.Tensor]) -> None:
    """Names, shapes and kinds of all tensors against what the config describes."""
    for key in sorted(expected.keys() | header.keys()):
        have = header[key].shape if key in header else None
        want = tuple(expected[key].shape) if key in expected else None
        if have != want:
            told = f"{key!r:.80} is {have!s:.80}, its config says {want!s:.80}"  # anybody's words, of any length
            raise BundleError(f"{file}: {told}. Get the bundle again.")
        floating = expected[key].is_floating_point()
        if header[key].dtype not in (("F16", "F32") if floating else ("I64",)):
            raise BundleError(f"{file}: {key!r:.80} has the type {header[key].dtype}. Get the bundle again.")


def read_finite(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file whose header was checked, in float32 or int64."""
    # A copy of its own for each: in the file they lie unaligned, and matrix products differ in the last bits for that.
    tensors = {
        k: v.to(torch.float32 if v.is_floating_point() else v.dtype, copy=True)
        for k, v in read_tensors(file)[0].items()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{file}: {name!r:.80} holds NaN or infinite values. Get the bundle again.")
    return tensors
