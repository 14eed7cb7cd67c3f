"""Paths and URLs of zoos."""

import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zoo_builder.errors import ZooError
from zoo_builder.files import as_path, is_local, write_bytes
from zoo_builder.store import Zoo


def test_a_url_of_a_file_is_a_local_path(tmp_path):
    assert as_path(f"file://{tmp_path}") == as_path(str(tmp_path)) == Path(tmp_path)
    assert not is_local(as_path("memory://zoo"))


def test_two_that_write_one_file_at_once_write_it_whole(tmp_path):
    """Threads, whose process has one number, as those of two containers may have."""
    contents = [bytes([i]) * 2**20 for i in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(20):
            list(threads.map(functools.partial(write_bytes, tmp_path / "one"), contents))
            assert (tmp_path / "one").read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_url_of_an_unknown_kind_is_refused():
    with pytest.raises(ZooError, match=r"is no URL that fsspec can open .* Expected a folder, or a URL such as"):
        Zoo.open("bogus://x/zoo")


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_url_whose_package_is_not_installed_names_it():
    with pytest.raises(ZooError, match=r"not installed .*s3fs"):
        Zoo.open("s3://bucket/zoo")
