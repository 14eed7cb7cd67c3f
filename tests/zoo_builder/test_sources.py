"""What a zoo remembers of its datasets: kept while the recipe's change, and refused where they or the file have."""

import dataclasses
import shutil

import pytest

from tests.zoo_builder.synthetic import striped_dataset, write_npz
from tests.zoo_builder.tiny_zoo import RECIPE
from zoo_builder.backbones import BackboneSpec
from zoo_builder.build import begin_zoo
from zoo_builder.errors import DataError, ZooError
from zoo_builder.merge import merge
from zoo_builder.sources import read_sources
from zoo_builder.verify import verify


def begin(path, data, recipe=RECIPE):
    return begin_zoo(path, BackboneSpec("test_resnet"), data / "base.safetensors", recipe, data)


@pytest.mark.parametrize(
    "contents", ["", "[]", '{"bands": 3}', '{"bands": {"licence": "MIT"}}', '{"bands": {"sha": "0"}}']
)
def test_a_damaged_file_is_named_by_build_merge_and_verify(zoo, whole, data, contents):
    (zoo.path / "datasets.json").write_text(contents)
    for use in (lambda: begin(zoo.path, data), lambda: merge(zoo, [whole]), lambda: merge(whole, [zoo])):
        with pytest.raises(ZooError, match=r"datasets\.json does not describe datasets"):
            use()
    (problem,) = verify(zoo).problems
    assert "datasets.json does not describe datasets" in problem


@pytest.fixture
def more(zoo, data, tmp_path):
    """The zoo's data folder with one dataset more."""
    shutil.copytree(data, tmp_path / "more")
    write_npz(tmp_path / "more" / "dots.npz", striped_dataset("dots", seed=9))
    return tmp_path / "more"


def test_a_changed_dataset_is_noticed_beside_a_new_one(zoo, more):
    before = read_sources(zoo.path)
    write_npz(more / "bands.npz", striped_dataset("bands", seed=7))
    with pytest.raises(DataError, match="'bands' has changed since this zoo was begun"):
        begin(zoo.path, more)
    assert read_sources(zoo.path) == before


def test_a_dataset_that_leaves_the_recipe_is_remembered_and_no_task_is_of_it(zoo, more):
    before = read_sources(zoo.path)
    for names in (("bands", "dots"), ("bands",)):
        _, tasks, sources = begin(zoo.path, more, dataclasses.replace(RECIPE, datasets=names))
        assert sources.keys() == {d for task in tasks for d in task.datasets} == set(names)
        kept = read_sources(zoo.path)
        assert kept.keys() == {"bands", "dots", "stripes"}
        assert kept["stripes"].sha256 == before["stripes"].sha256
        assert kept["stripes"].cluster not in {kept["bands"].cluster, kept["dots"].cluster}
    write_npz(more / "stripes.npz", striped_dataset("stripes", seed=7))
    write_npz(more / "more.npz", striped_dataset("more", seed=8))
    with pytest.raises(DataError, match="'stripes' has changed"):
        begin(zoo.path, more)
