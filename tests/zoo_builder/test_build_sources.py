"""A zoo over datasets of every kind of source."""

import json

import pytest

from tests.zoo_builder.synthetic import random_body, striped_dataset, write_image_folder, write_npz
from tests.zoo_builder.test_dataset_sources import PARTS, arrow_cache, write_mnist, write_parquet  # noqa: F401
from tests.zoo_builder.tiny_zoo import SHORT, build_zoo, write_data
from zoo_builder.checkpoint import write_atomically
from zoo_builder.errors import RecipeError
from zoo_builder.store import Zoo
from zoo_builder.tasks import Plan, ZooRecipe
from zoo_builder.verify import verify

RECIPE = ZooRecipe(
    (Plan("finetune", "finetune", SHORT), Plan("all", "episodic", SHORT, over="all")),
    held_out=("secret", "torchvision:KMNIST"),
    datasets=("stripes", "pets", "torchvision:MNIST", "hf:bands"),
    size=32,
    support=24,
)


@pytest.fixture
def data(tmp_path):
    root = write_data(tmp_path / "data", ("stripes",))
    write_npz(root / "secret.npz", striped_dataset("secret", seed=5))
    write_image_folder(root / "pets", count=20)
    write_mnist(root)
    write_parquet(root / "bands", PARTS)
    return root


def test_zoo_of_arrays_a_folder_torchvision_and_parquet(data, tmp_path, caplog):
    zoo = build_zoo(data, tmp_path / "zoo", RECIPE)
    assert {e.task.datasets for e in zoo.entries(plans=["finetune"])} == {(d,) for d in RECIPE.datasets}
    assert "held out, but not looked for in the zoo's datasets: torchvision:KMNIST" in caplog.text
    (entry,) = zoo.entries(plans=["all"])
    assert entry.about["sources"].keys() == set(RECIPE.datasets)
    report = verify(zoo, data, sample=5)
    assert (report.problems, len(report.re_evaluated)) == ((), 5)


def test_changed_folder_is_noticed(data, tmp_path):
    build_zoo(data, tmp_path / "zoo", RECIPE)
    (data / "pets" / "cat" / "0.png").unlink()
    problems = verify(Zoo.open(tmp_path / "zoo"), data, sample=5).problems
    assert len(problems) == 2  # the entry of the folder, and that of all
    assert all("'pets' has changed" in problem for problem in problems)


@pytest.mark.parametrize("name", ["secret", "hf:org/Secret@0a1b"])
def test_base_that_saw_a_held_out_dataset_is_refused_before_there_is_a_zoo(data, tmp_path, name):
    write_atomically(
        data / "base.safetensors", random_body().state_dict(), {"pretraining": json.dumps({"dataset": name})}
    )
    with pytest.raises(RecipeError, match=f"was pretrained on {name}, which the recipe holds out.*another base"):
        build_zoo(data, tmp_path / "zoo", RECIPE)
    assert not (tmp_path / "zoo").exists()
