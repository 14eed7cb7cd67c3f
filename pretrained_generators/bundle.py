"""A trained generator on disk: a folder with config.json and generator.safetensors. No pickle, no code.

A file is hostile until checked: sizes, names and shapes are compared with config.json before a tensor is read. The
format is written down in docs/bundle-format.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrained_generators.base_elsewhere import BaseElsewhere, body_sha256, take_base
from pretrained_generators.bundle_config import BundleConfig, TrainedOn, config_text, read_config, with_files
from pretrained_generators.bundle_files import (
    CARD,
    CONFIG,
    RESULTS,
    SAID_OF_WEIGHTS,
    STATISTICS,
    WEIGHTS,
    check_files,
    check_no_link,
    described,
    file_sha256,
)
from pretrained_generators.bundle_tensors import check_header, read_finite, read_header
from pretrained_generators.generator import Generator, GeneratorConfig
from zoo_builder.absorbed_statistics import can_absorb
from zoo_builder.backbones import BackboneSpec
from zoo_builder.checkpoint import as_safetensors, halved_if_exact
from zoo_builder.errors import BundleError, ModelError, nearest_names
from zoo_builder.files import write_together

__all__ = [
    "Bundle",
    "BundleConfig",
    "TrainedOn",
    "embedded_bundles",
    "load_bundle",
    "load_config",
    "save_bundle",
]

MAX_BODY = 1000  # tensors of a body that neither the file nor the user has
BODY_OPERATIONS = 25  # of torch, to lay out a body, for each of its tensors; models of timm take 3 to 20
OPERATIONS = 10  # the same to lay out all else, and to pass images through the body
MAX_PIXELS = 1024  # of a side; a user's images are resized to it
MAX_ARGUMENT = 2**14  # of a backbone: a width, a depth
MAX_EXPONENT = 100  # of a block's scale; float32 goes little further
EMBEDDED = Path(__file__).parent / "bundles"
BASE = "base."
MAX_UNSAVED_BYTES = 1 << 28  # of buffers that a body has beside its file


@dataclass(frozen=True)
class Bundle:
    config: BundleConfig
    generator: Generator


def save_bundle(
    generator: Generator,
    path: Path,
    base_source: str | None = None,
    kept_of: Sequence[tuple[BundleConfig, Path]] = (),
    **about: object,
) -> BundleConfig:
    """Write a generator; `about` holds the other fields of BundleConfig. Halves are stored where that loses nothing.

    With `base_source`, where its base can be had, in words, the base itself is left out. What is said of weights
    (results, audit, log; a card, where all else that it tells is the same) is kept if these are the weights, of a
    bundle that is replaced and of those of `kept_of`; else it is removed, at the very end.

    Raises:
        BundleError: a base that is left out is not in half precision, in which users will have it; or `path` holds
            files that are no bundle's, or more than one may; or `about` could not be read again.
    """
    before = replaced_bundle(path)
    state = generator.state_dict()
    if base_source is not None:
        base = {k: v for k, v in state.items() if k.startswith(BASE)}
        if any(v.is_floating_point() and halved_if_exact(v).dtype != torch.float16 for v in base.values()):
            raise BundleError("A base is left out in half precision; round the generator's base to it first.")
        state = {k: v for k, v in state.items() if k not in base}
        about["base_elsewhere"] = BaseElsewhere(body_sha256(generator.base.state_dict()), base_source)
    made = {WEIGHTS: as_safetensors({k: halved_if_exact(v) for k, v in state.items()})}
    if generator.statistics is not None:
        made[STATISTICS] = statistics_file(generator.statistics)
    config = BundleConfig(generator=generator.config, files=described(made), **about)  # type: ignore[arg-type]
    said: dict[str, bytes] = {}
    for other, folder in (*([(before, path)] if before else ()), *kept_of):
        if other.weights_sha256 == config.weights_sha256:
            said |= _said_of_weights(other, folder, with_card=replace(other, files=config.files) == config)
    beside = [f for f in before.files if f.name not in (WEIGHTS, STATISTICS, *SAID_OF_WEIGHTS)] if before else []
    files = sorted((*described(made | said), *beside), key=lambda f: f.name)
    config = replace(config, files=tuple(files))
    write_together(path, {**made, CONFIG: config_text(config).encode(), **said})
    for name in {*SAID_OF_WEIGHTS, STATISTICS} - {f.name for f in files}:  # after all that could still fail
        (path / name).unlink(missing_ok=True)
    for name in (CONFIG, *(f.name for f in files)):  # what a saving left that was killed, which no bundle may hold
        for left in path.glob(f".{name}.*"):
            left.unlink()
    return config


def replaced_bundle(path: Path) -> BundleConfig | None:
    """What a bundle that is written to `path` will replace; None where there is none.

    Raises:
        BundleError: it would replace files that are no bundle's. Weights alone are what a first saving left that was
            ended.
    """
    there = [name for name in (CONFIG, *SAID_OF_WEIGHTS) if (path / name).exists()]
    if not there:
        return None
    try:
        return read_config(path / CONFIG)
    except BundleError as e:
        raise BundleError(
            f"{path} holds {', '.join(there)} and is no bundle; one that is written there would replace them. Name "
            "another folder, or move them elsewhere."
        ) from e


def _said_of_weights(config: BundleConfig, folder: Path, with_card: bool) -> dict[str, bytes]:
    """A bundle's files that tell of its weights, as far as they are still there as it knows them; a card if it has
    the results that it tells."""
    said = {}
    for file in config.files:
        path = folder / file.name
        if file.name in SAID_OF_WEIGHTS and path.is_file():
            contents = path.read_bytes()
            if hashlib.sha256(contents).hexdigest() == file.sha256:
                said[file.name] = contents
    if not with_card or RESULTS not in said:
        said.pop(CARD, None)
    return said


def statistics_file(statistics: torch.Tensor) -> bytes:
    """What a bundle's datasets look like, [D, 2, f], as it is kept, in half precision."""
    return as_safetensors({"statistics": statistics.half()})


def record_files(
    config: BundleConfig, path: Path, coming: Mapping[str, bytes] | None = None, gone: Collection[str] = ()
) -> BundleConfig:
    """Write `coming`, files by name, and config.json anew, with the size and hash that every file of the folder has
    then; remove what is `gone`.

    Raises:
        BundleError: the weights are not those that `config` knows (other files may have changed), or these are more
            files than a bundle may have. Nothing was written.
    """
    check_weights(config, path)
    coming = coming or {}
    renewed = with_files(config, path, coming, gone)
    write_together(path, {**coming, CONFIG: config_text(renewed).encode()})
    for name in gone:
        (path / name).unlink(missing_ok=True)
    return renewed


def check_weights(config: BundleConfig, path: Path) -> None:
    """Before anything is said of them.

    Raises:
        BundleError: the weights are not those that `config` knows.
    """
    weights = path / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != config.weights_sha256:
        raise BundleError(f"{weights} is not the file that config.json describes. Get the bundle again.")


def embedded_bundles(whole: bool = False) -> list[str]:
    """Names of the bundles that ship with the package; `whole`, of those that hold their base."""
    names = sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))
    return [n for n in names if not whole or load_config(n).base_elsewhere is None]


def bundle_folder(name_or_path: str | Path) -> Path:
    """The folder of an embedded bundle's name, or of a path. A Path is always that folder, whatever its name.

    Raises:
        BundleError: there is none with a config.json.
    """
    if not isinstance(name_or_path, str | Path):
        raise BundleError(
            "Expected a bundle's embedded name, its folder or ORG/NAME of the Hub, as str or Path, or a Generator; got "
            f"{type(name_or_path).__name__} {name_or_path!r:.40}."
        )
    embedded = isinstance(name_or_path, str) and name_or_path in embedded_bundles()
    path = EMBEDDED / name_or_path if embedded else Path(name_or_path)
    if not (path / CONFIG).is_file():
        if isinstance(name_or_path, Path):
            raise BundleError(f"No bundle in {path}: expected a folder with {CONFIG}.")
        raise BundleError(
            f"No bundle {name_or_path!r}: expected a folder with {CONFIG}, ORG/NAME of the Hub, or an embedded name; "
            f"{nearest_names(name_or_path, embedded_bundles())}"
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
    header = read_header(weights)
    elsewhere = config.base_elsewhere
    in_file = {k: stored for k, stored in header.items() if k.startswith(BASE)}
    in_body = len(in_file) if elsewhere is None else MAX_BODY if base is None else len(base.state_dict())
    body = described_body(config.generator, path / CONFIG, in_body)
    taken = {}
    if elsewhere is None:
        check_header(weights, in_file, {BASE + k: v for k, v in body.state_dict().items()})
    elif base is not None:
        taken = take_base(elsewhere, body.state_dict(), base, config.name)
    with _shapes_alone(path / CONFIG, OPERATIONS * (len(header) + in_body)):
        generator = Generator(config.generator, body)
    state = {k: v for k, v in generator.state_dict().items() if elsewhere is None or not k.startswith(BASE)}
    check_header(weights, header, state)
    tensors = read_finite(weights)
    statistics = _read_statistics(path, config, generator)
    if elsewhere is not None and base is None:  # raises, after all else was checked without it
        take_base(elsewhere, body.state_dict(), base, config.name)
    generator.load_state_dict(tensors | {BASE + k: v for k, v in taken.items()}, assign=True)
    _fill_unsaved_buffers(body, config.generator.backbone)
    generator.bundle, generator.folder, generator.statistics = config, path.resolve(), statistics
    generator.revision = None if blobs is None else path.name
    return Bundle(config, generator.requires_grad_(False).eval())


def described_body(config: GeneratorConfig, path: Path, most_tensors: int = MAX_BODY) -> nn.Module:
    """The body that a config describes, in shapes alone: nothing is allocated for a config that lies.

    `path` is that of the config, for messages. What has far more than `most_tensors` is not laid out to its end.

    Raises:
        BundleError: there is no such body, its blocks are no parameters of it, or it cannot absorb and should.
    """
    backbone = config.backbone
    if not all(1 <= n <= MAX_PIXELS for n in (config.size, backbone.img_size or 1, backbone.in_chans)):
        raise BundleError(f"{path}: expected images of 1 to {MAX_PIXELS} pixels and channels. Get the bundle again.")
    if any(not isinstance(v, str) and abs(v) > MAX_ARGUMENT for v in backbone.args.values()):
        raise BundleError(f"{path}: an argument of {backbone.model} is above {MAX_ARGUMENT}. Get the bundle again.")
    with _shapes_alone(path, BODY_OPERATIONS * most_tensors):
        body = backbone.create()
    shapes = {name: tuple(p.shape) for name, p in body.named_parameters()}
    for block in config.layout.blocks:
        if shapes.pop(block.name, None) != block.shape or abs(block.exponent) > MAX_EXPONENT:
            raise BundleError(
                f"{path}: {block} is no parameter of {backbone.model}, or there twice. Get the bundle again."
            )
    if config.batchnorm == "absorbed" and not can_absorb(body):
        raise BundleError(f"{path}: {backbone.model} has no BatchNorm that could absorb statistics. Get it again.")
    return body


def _fill_unsaved_buffers(body: nn.Module, backbone: BackboneSpec) -> None:
    """Give those that no file holds, such as the indices of relative positions in timm, what the library gives them.

    Raises:
        BundleError: they are larger than those of any real body, which no file's size accounts for.
    """
    size = sum(buffer.nbytes for buffer in body.buffers() if buffer.is_meta)
    if size > MAX_UNSAVED_BYTES:
        raise BundleError(f"{backbone.model} as the bundle describes it has buffers of {size:,} bytes. Get it again.")
    if size:
        with torch.random.fork_rng(devices=[]):
            made = dict(backbone.create().named_buffers())
        for name, buffer in list(body.named_buffers()):
            if buffer.is_meta:
                module, _, own = name.rpartition(".")
                body.get_submodule(module).register_buffer(own, made[name], persistent=False)


@contextmanager
def _shapes_alone(path: Path, operations: int) -> Iterator[None]:
    """What is made inside has no memory for values, and takes no more than `operations` of torch."""
    try:
        with torch.device("meta"), _AtMost(operations):
            yield
    except ModelError as e:
        raise BundleError(f"{path}: {e} Upgrade timm and torchvision, or get the bundle again.") from e
    except Exception as e:  # whatever the constructors of three libraries raise for arguments that make no sense
        raise BundleError(f"{path} describes no generator ({e}). Get the bundle again.") from e


class _AtMost(TorchDispatchMode):
    """An error once `operations` of torch were done inside: a config can ask for millions of layers."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self.left = operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it is larger than its file, or the base that is at hand, accounts for")
        return func(*args, **(kwargs or {}))


def _read_statistics(path: Path, config: BundleConfig, generator: Generator) -> torch.Tensor | None:
    """What the bundle's datasets look like, where it says so."""
    if not any(f.name == STATISTICS for f in config.files):
        return None
    file, shape = path / STATISTICS, (len(config.trained_on), 2, len(generator.encoder.feature_mean))
    check_header(file, read_header(file), {"statistics": torch.empty(shape, device="meta")})
    return read_finite(file)["statistics"]
