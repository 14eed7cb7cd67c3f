"""`zoo build`: what it leaves in a zoo, and what it says of failures."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from d2nwg_init.cli import zoo as zoo_commands
from tests.cli.conftest import run, succeed
from tests.zoo_builder.synthetic import striped_dataset, write_npz
from tests.zoo_builder.tiny_zoo import write_data

RECIPE = """
size = 32
support = 24
held_out = ["secret"]
leakage = "off"
[[plans]]
name = "finetune"
kind = "finetune"
training = {steps = 2, batch_size = 16}
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Of a build on one thread of this process."""
    data = write_data(tmp_path / "data", ("stripes", "bands"))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.setattr(zoo_commands, "_executor", lambda *_: ThreadPoolExecutor(1))
    told = ("--recipe", tmp_path / "recipe.toml", "--data", data, "--base", data / "base.safetensors")
    return ("zoo", "build", *told, "--out", tmp_path / "zoo")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_dry_run_writes_nothing_into_a_zoo(arguments, tmp_path):
    assert "2 tasks, 0 of them done" in succeed(*arguments, "--dry-run")
    assert not (tmp_path / "zoo").exists()
    succeed(*arguments)
    before = contents(tmp_path / "zoo")
    write_npz(tmp_path / "data" / "more.npz", striped_dataset("more", seed=7))
    text = succeed(*arguments, "--dry-run")
    assert "finetune-more-plain-0" in text
    assert "3 tasks, 2 of them done" in text
    assert contents(tmp_path / "zoo") == before


def test_a_failure_without_a_message_is_told_by_its_kind(arguments, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("zoo_builder.job.run_tasks", full)
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    message = " ".join(result.stderr.split())
    assert "2 of 2 tasks failed" in message
    assert ": MemoryError. The others are in the zoo" in message
