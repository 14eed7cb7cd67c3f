"""A trained generator on disk: a folder with config.json, generator.safetensors and README.md. No pickle, no code.

A file is hostile until checked: sizes, names and shapes are compared with config.json before a tensor is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pretrained_generators.generator import Generator, GeneratorConfig
from zoo_builder.checkpoint import halved_if_exact, read_tensors, write_atomically, write_text_atomically
from zoo_builder.errors import BundleError, D2NWGError, ModelError, nearest_names
from zoo_builder.recipe import parse_config

FORMAT = 1
MAX_BYTES = 2**31  # of the weights file; a generator is far smaller
MAX_EXPONENT = 100  # of a block's scale; float32 goes little further
EMBEDDED = Path(__file__).parent / "bundles"


@dataclass(frozen=True)
class TrainedOn:
    name: str
    entries: int


@dataclass(frozen=True)
class BundleConfig:
    name: str
    generator: GeneratorConfig
    weights_sha256: str
    trained_on: tuple[TrainedOn, ...]  # datasets of the zoo with the number of their entries
    held_out: tuple[str, ...]  # never trained on
    base_sha256: str  # of the base checkpoint that the zoo was built from
    base_pretrained_on: str  # dataset
    measured: dict[str, float] = field(default_factory=dict)  # what training measured, see the card
    learnt: tuple[str, ...] = ()  # ids of the zoo's entries that it was trained on
    kept_back: tuple[str, ...] = ()  # ids of those that were kept out, to measure reconstruction on
    trained_with: str | None = None  # SHA-256 of recipe, base and entries; equal: the same training
    format: int = FORMAT


@dataclass(frozen=True)
class Bundle:
    config: BundleConfig
    generator: Generator


def save_bundle(generator: Generator, path: Path, **about: object) -> BundleConfig:
    """Write a generator; `about` holds the other fields of BundleConfig. Halves are stored where that loses nothing."""
    tensors = {k: halved_if_exact(v) for k, v in generator.state_dict().items()}
    weights = path / "generator.safetensors"
    write_atomically(weights, tensors)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    config = BundleConfig(generator=generator.config, weights_sha256=sha256, **about)  # type: ignore[arg-type]
    write_text_atomically(path / "config.json", json.dumps(asdict(config), indent=1))
    return config


def embedded_bundles() -> list[str]:
    """Names of the bundles that ship with the package."""
    return sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))


def load_bundle(name_or_path: str | Path) -> Bundle:
    """Load an embedded bundle by name, or a folder.

    Raises:
        BundleError: unknown, damaged, of a newer format, or its weights are not those that its config describes.
    """
    path = EMBEDDED / str(name_or_path) if str(name_or_path) in embedded_bundles() else Path(name_or_path)
    if not (path / "config.json").is_file():
        raise BundleError(
            f"No bundle {str(name_or_path)!r}: expected a folder with config.json, or an embedded name; "
            f"{nearest_names(str(name_or_path), embedded_bundles())}"
        )
    config = _read_config(path / "config.json")
    weights = path / "generator.safetensors"
    if not weights.is_file() or weights.stat().st_size > MAX_BYTES:
        raise BundleError(f"{path}: expected generator.safetensors of at most {MAX_BYTES} bytes. Get the bundle again.")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != config.weights_sha256:
        raise BundleError(f"{weights} is not the file that config.json describes (SHA-256). Get the bundle again.")
    generator = _without_weights(config.generator, path / "config.json")
    _check_header(weights, generator.state_dict())
    # A copy of its own for each: in the file they lie unaligned, and matrix products differ in the last bits for that.
    tensors = {k: (v.float() if v.is_floating_point() else v).clone() for k, v in read_tensors(weights)[0].items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{weights}: {name} holds NaN or infinite values. Get the bundle again.")
    generator.load_state_dict(tensors, assign=True)
    return Bundle(config, generator.requires_grad_(False).eval())


def _read_config(path: Path) -> BundleConfig:
    try:
        values = json.loads(path.read_text())
        newer = isinstance(values, dict) and isinstance(values.get("format"), int) and values["format"] > FORMAT
        if newer:
            raise BundleError(f"{path} has format {values['format']}; this version reads {FORMAT}. Upgrade d2nwg-init.")
        return parse_config(values, BundleConfig)
    except (OSError, ValueError, D2NWGError) as e:
        raise e if isinstance(e, BundleError) else BundleError(f"{path} is not a bundle's config ({e}).") from e


def _without_weights(config: GeneratorConfig, path: Path) -> Generator:
    """The generator that a config describes, in shapes alone: nothing is allocated for a config that lies."""
    try:
        with torch.device("meta"):
            generator = Generator(config)
    except ModelError as e:
        raise BundleError(f"{path}: {e} Upgrade timm and torchvision, or get the bundle again.") from e
    except (RuntimeError, ValueError, ArithmeticError) as e:
        raise BundleError(f"{path} describes no generator ({e}). Get the bundle again.") from e
    body = {name: tuple(p.shape) for name, p in generator.base.named_parameters()}
    for block in config.layout.blocks:
        if body.pop(block.name, None) != block.shape or abs(block.exponent) > MAX_EXPONENT:
            raise BundleError(
                f"{path}: {block} is no parameter of {config.backbone.model}, or there twice. Get the bundle again."
            )
    return generator


def _check_header(weights: Path, expected: dict[str, torch.Tensor]) -> None:
    """Names, shapes and kinds of all tensors against the model that the config describes."""
    try:
        with safe_open(str(weights), framework="pt") as file:
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
            kinds = {k: file.get_slice(k).get_dtype() for k in shapes}
    except (OSError, SafetensorError) as e:
        raise BundleError(f"{weights} is not a readable safetensors file ({e}). Get the bundle again.") from e
    for key in sorted(expected.keys() | shapes.keys()):
        want = tuple(expected[key].shape) if key in expected else None
        if shapes.get(key) != want:
            raise BundleError(f"{weights}: {key} is {shapes.get(key)}, its config says {want}. Get the bundle again.")
        floating = expected[key].is_floating_point()
        if kinds[key] not in (("F16", "F32") if floating else ("I64",)):
            raise BundleError(f"{weights}: {key} has the type {kinds[key]}. Get the bundle again.")
