"""A trained generator on disk: a folder with config.json, generator.safetensors and README.md. No pickle, no code.

A file is hostile until checked: sizes, names and shapes are compared with config.json before a tensor is read. The
format is written down in docs/bundle-format.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pretrained_generators.base_elsewhere import BaseElsewhere, body_sha256, take_base
from pretrained_generators.bundle_config import BundleConfig, TrainedOn, read_config, write_config
from pretrained_generators.bundle_files import CONFIG, WEIGHTS, check_files, check_no_link, recorded
from pretrained_generators.generator import Generator, GeneratorConfig
from zoo_builder.checkpoint import halved_if_exact, read_tensors, write_atomically
from zoo_builder.errors import BundleError, ModelError, nearest_names

__all__ = [
    "Bundle",
    "BundleConfig",
    "TrainedOn",
    "embedded_bundles",
    "load_bundle",
    "load_config",
    "save_bundle",
]

MAX_HEADER_BYTES = 4 * 2**20
MAX_TENSORS = 10_000
HEADS = 500  # tensors of heads that a model may be built with and then lose, with room to spare
MAX_PIXELS = 4096
MAX_ARGUMENT = 2**14  # of a backbone: a width, a depth
MAX_EXPONENT = 100  # of a block's scale; float32 goes little further
EMBEDDED = Path(__file__).parent / "bundles"
BASE = "base."


@dataclass(frozen=True)
class Bundle:
    config: BundleConfig
    generator: Generator


def save_bundle(generator: Generator, path: Path, base_source: str | None = None, **about: object) -> BundleConfig:
    """Write a generator; `about` holds the other fields of BundleConfig. Halves are stored where that loses nothing.

    With `base_source`, where its base can be had, in words, the base itself is left out.

    Raises:
        BundleError: a base that is left out is not in half precision, in which users will have it.
    """
    state = generator.state_dict()
    if base_source is not None:
        base = {k: v for k, v in state.items() if k.startswith(BASE)}
        if any(v.is_floating_point() and halved_if_exact(v).dtype != torch.float16 for v in base.values()):
            raise BundleError("A base is left out in half precision; round the generator's base to it first.")
        state = {k: v for k, v in state.items() if k not in base}
        about["base_elsewhere"] = BaseElsewhere(body_sha256(generator.base.state_dict()), base_source)
    write_atomically(path / WEIGHTS, {k: halved_if_exact(v) for k, v in state.items()})
    files = tuple(f for f in recorded(path) if f.name == WEIGHTS)
    config = BundleConfig(generator=generator.config, files=files, **about)  # type: ignore[arg-type]
    write_config(config, path)
    return config


def record_files(config: BundleConfig, path: Path) -> BundleConfig:
    """Write config.json anew, with the size and hash that every file of the folder has now.

    Raises:
        BundleError: the weights are not those that `config` knows; other files may have changed.
    """
    renewed = replace(config, files=recorded(path))
    if not (path / WEIGHTS).is_file() or renewed.weights_sha256 != config.weights_sha256:
        raise BundleError(f"{path / WEIGHTS} is not the file that config.json describes. Get the bundle again.")
    write_config(renewed, path)
    return renewed


def embedded_bundles() -> list[str]:
    """Names of the bundles that ship with the package."""
    return sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))


def bundle_folder(name_or_path: str | Path) -> Path:
    """The folder of an embedded bundle's name, or of a path.

    Raises:
        BundleError: there is none with a config.json.
    """
    path = EMBEDDED / str(name_or_path) if str(name_or_path) in embedded_bundles() else Path(name_or_path)
    if not (path / CONFIG).is_file():
        raise BundleError(
            f"No bundle {str(name_or_path)!r}: expected a folder with {CONFIG}, ORG/NAME of the Hub, or an embedded "
            f"name; "
            f"{nearest_names(str(name_or_path), embedded_bundles())}"
        )
    return path


def load_config(name_or_path: str | Path, blobs: Path | None = None) -> BundleConfig:
    """What a bundle says of itself; its other files are not looked at. Raises as `load_bundle`."""
    path = bundle_folder(name_or_path) / CONFIG
    check_no_link(path, blobs)
    return read_config(path)


def load_bundle(name_or_path: str | Path, base: nn.Module | None = None, blobs: Path | None = None) -> Bundle:
    """Load an embedded bundle by name, or a folder.

    `base` is a model whose body is the base, for a bundle that leaves it out; `blobs` is where the links of a folder in
    the Hub's cache lead.

    Raises:
        BundleError: unknown, damaged, of a newer format, or its weights are not those that its config describes; or the
            base is needed and this is not it.
    """
    config = load_config(name_or_path, blobs)
    path = bundle_folder(name_or_path)
    check_files(path, config.files, blobs)
    weights = path / WEIGHTS
    header = _read_header(weights)
    most = MAX_TENSORS if config.base_elsewhere else len(header)
    generator = described_generator(config.generator, path / CONFIG, most)
    state = generator.state_dict()
    elsewhere = {k for k in state if k.startswith(BASE)} if config.base_elsewhere else set()
    _check_header(weights, header, {k: v for k, v in state.items() if k not in elsewhere})
    # A copy of its own for each: in the file they lie unaligned, and matrix products differ in the last bits for that.
    tensors = {k: (v.float() if v.is_floating_point() else v).clone() for k, v in read_tensors(weights)[0].items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{weights}: {name} holds NaN or infinite values. Get the bundle again.")
    if config.base_elsewhere is not None:
        shapes = {k.removeprefix(BASE): state[k].shape for k in elsewhere}
        tensors |= {BASE + k: v for k, v in take_base(config.base_elsewhere, shapes, base, config.name).items()}
    generator.load_state_dict(tensors, assign=True)
    generator.bundle = config
    return Bundle(config, generator.requires_grad_(False).eval())


def described_generator(config: GeneratorConfig, path: Path, most_tensors: int = MAX_TENSORS) -> Generator:
    """The generator that a config describes, in shapes alone: nothing is allocated for a config that lies.

    `path` is that of the config, for messages; a generator of far more than `most_tensors` is not built to its end.

    Raises:
        BundleError: there is no such generator.
    """
    backbone = config.backbone
    if not all(1 <= n <= MAX_PIXELS for n in (config.size, backbone.img_size or 1, backbone.in_chans)):
        raise BundleError(f"{path}: expected images of 1 to {MAX_PIXELS} pixels and channels. Get the bundle again.")
    if any(not isinstance(v, str) and abs(v) > MAX_ARGUMENT for v in backbone.args.values()):
        raise BundleError(f"{path}: an argument of {backbone.model} is above {MAX_ARGUMENT}. Get the bundle again.")
    try:
        with torch.device("meta"), _at_most_parameters(2 * most_tensors + HEADS):
            generator = Generator(config)
    except ModelError as e:
        raise BundleError(f"{path}: {e} Upgrade timm and torchvision, or get the bundle again.") from e
    except Exception as e:  # whatever the constructors of three libraries raise for arguments that make no sense
        raise BundleError(f"{path} describes no generator ({e}). Get the bundle again.") from e
    body = {name: tuple(p.shape) for name, p in generator.base.named_parameters()}
    for block in config.layout.blocks:
        if body.pop(block.name, None) != block.shape or abs(block.exponent) > MAX_EXPONENT:
            raise BundleError(
                f"{path}: {block} is no parameter of {config.backbone.model}, or there twice. Get the bundle again."
            )
    return generator


@contextmanager
def _at_most_parameters(limit: int) -> Iterator[None]:
    """An error as soon as modules made here have more parameters: a config can ask for millions of layers."""
    thread, count = threading.get_ident(), 0

    def see(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > limit:
            raise ValueError("it has more tensors than its file")

    hook = register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class _Stored:
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it


def _read_header(weights: Path) -> dict[str, _Stored]:
    """Names, shapes and types of all tensors of a safetensors file."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise BundleError(f"{weights} has a header of {length} bytes, more than {MAX_HEADER_BYTES}.")
    try:
        with safe_open(str(weights), framework="pt") as file:
            slices = {k: file.get_slice(k) for k in file.keys()}  # noqa: SIM118
            header = {k: _Stored(tuple(s.get_shape()), s.get_dtype()) for k, s in slices.items()}
    except (OSError, SafetensorError) as e:
        raise BundleError(f"{weights} is not a readable safetensors file ({e}). Get the bundle again.") from e
    if len(header) > MAX_TENSORS:
        raise BundleError(f"{weights} has {len(header)} tensors, more than {MAX_TENSORS}.")
    return header


def _check_header(weights: Path, header: dict[str, _Stored], expected: dict[str, torch.Tensor]) -> None:
    """Names, shapes and kinds of all tensors against the model that the config describes."""
    for key in sorted(expected.keys() | header.keys()):
        have = header[key].shape if key in header else None
        want = tuple(expected[key].shape) if key in expected else None
        if have != want:
            raise BundleError(f"{weights}: {key} is {have}, its config says {want}. Get the bundle again.")
        floating = expected[key].is_floating_point()
        if header[key].dtype not in (("F16", "F32") if floating else ("I64",)):
            raise BundleError(f"{weights}: {key} has the type {header[key].dtype}. Get the bundle again.")
