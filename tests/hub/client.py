"""What a process of its own does with the real client, whose environment is read once, at its import."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import timm
from huggingface_hub import HfApi
from typer.testing import CliRunner

from d2nwg_init import refine
from d2nwg_init.cli import app
from pretrained_generators.generator import Generator
from pretrained_generators.generator_list import list_generators
from pretrained_generators.hub import locate
from pretrained_generators.push import push_bundle
from zoo_builder.backbones import create_backbone
from zoo_builder.errors import BundleError, ModelError


def refine_little():
    """In all that this process does from now on."""
    refine.MOST_STEPS, refine.TRAININGS_OF_FEW = 2, 1


def with_token(token, does, *args, **how):
    """As where the environment has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", token)
        return does(*args, **how)


def digest(model):
    """Of all tensors."""
    state = sorted(model.state_dict().items())
    return hashlib.sha256(b"".join(t.numpy().tobytes() for _, t in state)).hexdigest()


def load(source, **how):
    """The digest of the generator, or the message of a BundleError."""
    try:
        return digest(Generator.from_pretrained(source, **how))
    except BundleError as e:
        return f"BundleError: {e}"


def push(folder, repo, **how):
    try:
        return push_bundle(folder, repo, **how).oid
    except BundleError as e:
        return f"BundleError: {e}"


def push_generator(source, repo, cache_dir=None, **how):
    """By the mixin's method; the URL that it returned, or the message of a BundleError."""
    try:
        return Generator.from_pretrained(source, cache_dir=cache_dir).push_to_hub(repo, **how)
    except BundleError as e:
        return f"BundleError: {e}"


def push_model(folder, repo, **how):
    """A folder that `report.save` wrote, as its owner would push it."""
    api = HfApi(**how)
    api.create_repo(repo)
    api.upload_folder(repo_id=repo, folder_path=folder)


def timm_model(repo):
    """The digest of what timm loads of the Hub."""
    return digest(timm.create_model(f"hf-hub:{repo}", pretrained=True))


def create(model):
    """The message of a ModelError, of a model with its library's own weights."""
    try:
        return str(create_backbone(model, "pretrained"))
    except ModelError as e:
        return f"ModelError: {e}"


def commit_of(source, **how):
    return locate(source, **how)[0].name


def listed(**how):
    return list_generators(**how)


def interrupted(*words):
    """`command`, of which Ctrl-C stops the copying of the second file."""
    calls = iter(range(1))

    def copy(source, target):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        Path(target).write_bytes(Path(source).read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.copyfile", copy)
        return command(*words)


def command(*words):
    """Exit code and output of `d2nwg-init ...`; of one that failed what it complained of too."""
    result = CliRunner().invoke(app, [*map(str, words)])
    return result.exit_code, " ".join((result.output if result.exit_code else result.stdout).split())
