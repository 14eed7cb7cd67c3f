"""Paths and URLs of zoos."""

import importlib.util
from pathlib import Path

import pytest

from zoo_builder.errors import ZooError
from zoo_builder.files import as_path, is_local
from zoo_builder.store import Zoo


def test_a_url_of_a_file_is_a_local_path(tmp_path):
    assert as_path(f"file://{tmp_path}") == as_path(str(tmp_path)) == Path(tmp_path)
    assert not is_local(as_path("memory://zoo"))


def test_a_url_of_an_unknown_kind_is_refused():
    with pytest.raises(ZooError, match=r"is no URL that fsspec can open .* Expected a folder, or a URL such as"):
        Zoo.open("bogus://x/zoo")


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_url_whose_package_is_not_installed_names_it():
    with pytest.raises(ZooError, match=r"not installed .*s3fs"):
        Zoo.open("s3://bucket/zoo")
