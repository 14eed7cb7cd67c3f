"""Which generators there are: embedded, in the Hub client's cache and, where asked, on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from pretrained_generators.bundle import embedded_bundles, load_config
from pretrained_generators.bundle_config import BundleConfig
from pretrained_generators.bundle_files import CONFIG, WEIGHTS
from pretrained_generators.hub import blobs_of, client_errors, fetch_config
from zoo_builder.errors import BundleError

TAG = "d2nwg-init"  # of the cards


@dataclass(frozen=True)
class GeneratorInfo:
    name: str  # what `initialize` and `Generator.from_pretrained` take; one of the Hub is pinned to its commit
    where: Literal["embedded", "cached", "hub"]
    architecture: str  # timm's name of the model, or torchvision:NAME
    size: int  # pixels of the images that it was trained for
    commercial: bool  # whether the licences of all that it was trained on allow commercial use
    weights_sha256: str
    base: str  # "included", or where it can be had


def list_generators(
    architecture: str | None = None,
    commercial: bool | None = None,
    hub: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> list[GeneratorInfo]:
    """Generators of an architecture (of all), and those whose training data allows commercial use, or does not (both).

    With `hub`, the Hub is asked as well; else there is no network access.

    Raises:
        BundleError: the Hub is asked and does not answer.
    """
    found = [*_embedded(), *_cached(cache_dir), *(_on_hub(cache_dir, token) if hub else ())]
    once = {i.name: i for i in reversed(found)}.values()  # what is cached is not told again as the Hub's
    return [i for i in reversed(once) if architecture in (None, i.architecture) and commercial in (None, i.commercial)]


def _embedded() -> Iterator[GeneratorInfo]:
    for name in embedded_bundles():
        yield _info(name, "embedded", load_config(name))


def _cached(cache_dir: str | Path | None) -> Iterator[GeneratorInfo]:
    try:
        repos = scan_cache_dir(cache_dir).repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda r: r.repo_id):
        for revision in sorted(repo.revisions, key=lambda r: r.commit_hash):
            folder = revision.snapshot_path
            if (folder / WEIGHTS).exists() and (folder / CONFIG).exists():
                try:
                    config = load_config(folder, blobs_of(folder))
                except BundleError:  # another library's
                    continue
                yield _info(f"{repo.repo_id}@{revision.commit_hash}", "cached", config)


def _on_hub(cache_dir: str | Path | None, token: str | bool | None) -> Iterator[GeneratorInfo]:
    with client_errors(f"models tagged {TAG}"):
        models = list(HfApi(token=token).list_models(filter=TAG, full=True))
    for model in models:
        try:
            with client_errors(model.id):
                folder = fetch_config(model.id, model.sha, cache_dir, token=token).parent
            yield _info(f"{model.id}@{model.sha}", "hub", load_config(folder, blobs_of(folder)))
        except BundleError:  # tagged so, and none that this version reads
            continue


def _info(name: str, where: Literal["embedded", "cached", "hub"], config: BundleConfig) -> GeneratorInfo:
    base = config.base_elsewhere.source if config.base_elsewhere else "included"
    generator = config.generator
    return GeneratorInfo(
        name, where, generator.backbone.model, generator.size, config.commercial, config.weights_sha256, base
    )
