"""What a zoo remembers of its datasets: kept while the recipe's change, and refused where they or the file have."""

import pytest

from tests.zoo_builder.tiny_zoo import RECIPE
from zoo_builder.backbones import BackboneSpec
from zoo_builder.build import begin_zoo
from zoo_builder.errors import ZooError
from zoo_builder.merge import merge
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
