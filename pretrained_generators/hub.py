"""Bundles on the Hub: fetched into its client's cache and read from there.

The client is huggingface_hub's, with all that it honours: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from torch import nn

from pretrained_generators.base_elsewhere import BaseMissing
from pretrained_generators.bundle import (
    Bundle,
    bundle_folder,
    embedded_bundles,
    load_bundle,
    load_config,
)
from pretrained_generators.bundle_config import MAX_CONFIG_BYTES, BundleConfig
from pretrained_generators.bundle_files import CONFIG
from zoo_builder.errors import BundleError

REPOSITORY = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def open_bundle(source: str | Path, base: nn.Module | None = None, **how: Any) -> Bundle:
    """Load an embedded bundle by name, a folder, or ORG/NAME or ORG/NAME@REVISION of the Hub; see `load_bundle`.

    `how` is passed on to `fetch_bundle`.

    Raises:
        BundleError: also where the Hub has no such bundle, refuses it, or cannot be reached and the cache lacks it.
    """
    folder, blobs = locate(source, **how)
    return load_bundle(folder, base, blobs)


def verify_bundle(source: str | Path, **how: Any) -> BundleConfig:
    """Every check of `open_bundle`, but that a base that is left out need not be at hand."""
    folder, blobs = locate(source, **how)
    with suppress(BaseMissing):
        load_bundle(folder, None, blobs)
    return load_config(folder, blobs)


def locate(source: str | Path, **how: Any) -> tuple[Path, Path | None]:
    """The folder of an embedded bundle, or `source` itself, or a folder of the client's cache and where its links
    lead.

    Raises:
        BundleError: no such bundle; or a revision is asked for of what is not on the Hub, or two of them.
    """
    name = on_hub(source)
    if name is None:
        folder, revision = bundle_folder(source), how.get("revision")
        if revision is not None:
            raise BundleError(
                f"{source} is on this machine and has no revisions, and {revision!r:.40} is asked for. Leave it out, "
                "or give ORG/NAME of the Hub."
            )
        return folder, None
    repo, pinned = name
    revision = how.get("revision") or pinned
    if pinned not in (None, revision):
        raise BundleError(f"{source} names one revision, and {revision!r} is asked for as well. Give one of them.")
    folder = fetch_bundle(repo, **(how | {"revision": revision}))
    return folder, blobs_of(folder)


def on_hub(source: str | Path) -> tuple[str, str | None] | None:
    """Repository and revision, where `source` names neither an embedded bundle nor a folder and looks like these."""
    match = REPOSITORY.fullmatch(str(source))
    if match is None or isinstance(source, Path) or source in embedded_bundles() or Path(source).exists():
        return None
    return match["repo"], match["revision"]


def fetch_bundle(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The bundle's folder in the client's cache, named by its commit; files that are not there are fetched.

    Only what config.json names is fetched, and only if the Hub has it in the size that config.json says; before that
    config.json itself, if it is not too long.
    """

    how: dict[str, Any] = {
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "token": token,
    }
    with client_errors(f"{repo}@{revision}" if revision else repo):
        folder = fetch_config(repo, revision, **how).parent
        config, commit = load_config(folder, blobs_of(folder)), folder.name
        absent = {
            f.name: f.bytes
            for f in config.files
            if force_download or not isinstance(try_to_load_from_cache(repo, f.name, cache_dir, commit), str)
        }
        if absent and not local_files_only:
            tree = HfApi(token=token).list_repo_tree(repo, revision=commit)
            offered = {p.path: p.size for p in tree if isinstance(p, RepoFile)}
            for name, size in absent.items():
                if offered.get(name) != size:
                    raise BundleError(
                        f"{repo} at {commit} offers {name} with {offered.get(name)} bytes, and its config.json says "
                        f"{size}. Nothing of it was fetched; ask its author."
                    )
        for name in absent:
            hf_hub_download(repo, name, revision=commit, **how)
    return folder


def fetch_config(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Path:
    """config.json of a bundle in the client's cache; fetched only if it is no longer than one may be.

    Raises:
        BundleError: it is longer. Whatever the client raises, see `client_errors`.
    """
    cached, size = try_to_load_from_cache(repo, CONFIG, cache_dir, revision), None
    settled = isinstance(cached, str) and Path(cached).parent.name == revision  # at a commit, where nothing changes
    if not local_files_only and (force_download or not settled):
        with suppress(Exception):  # the client asks again below, and tells what is wrong or takes what it has
            size = get_hf_file_metadata(hf_hub_url(repo, CONFIG, revision=revision), token=token).size
    if size is not None and size > MAX_CONFIG_BYTES:
        raise BundleError(
            f"{repo} offers a {CONFIG} of {size} bytes; a bundle's has at most {MAX_CONFIG_BYTES}. It was not fetched; "
            "ask its author."
        )
    return Path(
        hf_hub_download(repo, CONFIG, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only,
                        force_download=force_download, token=token)
    )  # fmt: skip


def blobs_of(snapshot: Path) -> Path:
    """Where the links in a snapshot of the client's cache lead."""
    return snapshot.parents[1] / "blobs"


@contextmanager
def client_errors(what: str) -> Iterator[None]:
    """What the client raises, as a BundleError that says what to do."""
    try:
        yield
    except BundleError:
        raise
    except Exception as e:  # its versions talk through different libraries, whose errors pass through it
        told = " ".join(str(e).split())[:400].rstrip(".")
        raise BundleError(f"{what} on the Hub: {told}. {_advice(e)}") from e


def _advice(e: Exception) -> str:
    status = getattr(getattr(e, "response", None), "status_code", None)  # 401: what the Hub says of a wrong token
    if isinstance(e, RepositoryNotFoundError | GatedRepoError) or status == 401:
        return "Check the name; if it is private or gated, log in (hf auth login) or give a token that may read it."
    if isinstance(e, RevisionNotFoundError):
        return "Check the revision: a branch, a tag or a commit."
    if isinstance(e, LocalEntryNotFoundError) and e.__cause__ is None:  # the Hub was not to be asked
        return (
            "There is no such folder, and the cache lacks it. To fetch it from the Hub: d2nwg-init bundle pull ORG/NAME"
        )
    if isinstance(e, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return "Check the connection, HF_ENDPOINT, and that HF_HUB_OFFLINE is not set."
    if isinstance(e, EntryNotFoundError):
        return "It holds no bundle of this library, or not all of one."
    if isinstance(e, HFValidationError):
        return "Expected ORG/NAME."
    if isinstance(e, ConnectionError) or "Connect" in type(e).__name__:  # by the name, of httpx's and of requests'
        return "Check the connection and HF_ENDPOINT."
    return "Try again."
