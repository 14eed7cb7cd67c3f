"""A generator that was loaded from a bundle, written again; and a bundle pushed to the Hub."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from pretrained_generators.bundle import save_bundle
from pretrained_generators.bundle_config import BundleConfig
from pretrained_generators.bundle_files import CONFIG, RESULTS, SAID_OF_WEIGHTS, STATISTICS
from pretrained_generators.card import NO_CARD, write_card
from pretrained_generators.card_results import read_results
from pretrained_generators.eval_results import OURS, eval_result_files
from pretrained_generators.generator import Generator
from pretrained_generators.hub import client_errors, verify_bundle
from zoo_builder.errors import BundleError


def save_again(generator: Generator, folder: Path) -> None:
    """Write a generator that was loaded from a bundle, with all that the bundle said of itself. What it said of its
    weights, results and thereby a card among it, is kept if they are still these weights.

    Raises:
        BundleError: it never was in a bundle, or its results are not what this project writes; and what `save_bundle`
            raises.
    """
    if generator.bundle is None:
        raise BundleError(
            "This generator does not say what it was trained on. Write it with save_bundle(), which is told."
        )
    renewed = ("generator", "files", "base_elsewhere", "format", "readable_since")
    about = {f.name: getattr(generator.bundle, f.name) for f in fields(BundleConfig) if f.name not in renewed}
    elsewhere = generator.bundle.base_elsewhere
    kept_of = [(generator.bundle, generator.folder)] if generator.folder else []
    write_card(save_bundle(generator, folder, elsewhere.source if elsewhere else None, kept_of, **about), folder)


def push_bundle(
    folder: Path,
    repo: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool | None = None,
) -> CommitInfo:
    """Push a bundle's folder as it is, in one commit, after a check; makes the repository where there is none.

    Results on datasets of the Hub are told there as `.eval_results` too, which are no part of the bundle. What lies
    there of earlier weights, an audit for one, goes.

    Returns:
        What the client says of the commit: `oid`, a hash of 40 digits, and `commit_url`.

    Raises:
        BundleError: it is not sound, has no results and hence no card, or the Hub refuses.
    """
    config = verify_bundle(folder)
    results = read_results(folder, config)
    if not config.has_card or results is None:
        raise BundleError(f"The bundle {config.name!r} has no card and is not pushed: {NO_CARD}")
    with client_errors(repo):
        api = HfApi(token=token)
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        told = eval_result_files(results, f"{api.endpoint}/{name}/blob/{revision or 'main'}/{RESULTS}")
        files: dict[str, Path | bytes] = {n: folder / n for n in (CONFIG, *(f.name for f in config.files))} | told
        before = [path for path in api.list_repo_files(name, revision=revision) if path not in files]
        of_others = [p for p in before if p.startswith(OURS) or p in (*SAID_OF_WEIGHTS, STATISTICS)]
        return api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, contents) for path, contents in files.items()),
                *(CommitOperationDelete(path) for path in of_others),
            ],
            commit_message=commit_message or f"Bundle {config.name}",
            revision=revision,
            create_pr=create_pr,
        )
