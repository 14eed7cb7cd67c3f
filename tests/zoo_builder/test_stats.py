"""Figures of a zoo whose gains and deltas are known."""

import json

import pytest
import torch

from tests.zoo_builder.synthetic import random_body, seeded, striped_images, tiny_task
from zoo_builder.backbones import BackboneSpec
from zoo_builder.errors import ZooError
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.stats import stats
from zoo_builder.stats_plot import draw_stats
from zoo_builder.store import Zoo
from zoo_builder.tasks import ZooRecipe


def write(zoo, task, gain, percent=1.0, licence="CC0"):
    """An entry whose delta is so many percent of the base."""
    images, labels = striped_images(4)
    delta = {k: percent / 100 * p.detach() for k, p in random_body().named_parameters()}
    metrics = {"solved_accuracy": 50.0, "best_accuracy": 50 + gain, "best_strength": 1.0, "gain": gain, "seconds": 900}
    embedding = torch.randn(8, generator=seeded(len(task.id) + task.seed))
    support = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    sources = {n: {"licence": licence, "origin": "made up", "sha256": "0", "cluster": 3} for n in task.datasets}
    zoo.write(task, FineTuneResult(delta, {}, *support, embedding, metrics, []), {"sources": sources})


@pytest.fixture
def empty(tmp_path):
    recipe = ZooRecipe(plans=(), held_out=("secret",), size=32, support=4)
    return Zoo.create(tmp_path / "zoo", BackboneSpec("test_resnet"), random_body().state_dict(), recipe)


@pytest.fixture
def zoo(empty):
    write(empty, tiny_task(plan="trunk", datasets=("stripes", "bands"), domains=("plain", "invert")), 4.0, 2.0)
    write(empty, tiny_task(), 1.0, 0.5)
    write(empty, tiny_task(domains=("invert",)), 3.0, 1.5)
    write(empty, tiny_task("finetune", plan="finetune", datasets=("bands",)), -2.0, 1.0, "MIT")
    empty.write_failure(tiny_task(seed=9), "no")
    return empty


def test_figures_are_those_of_the_entries(zoo):
    found = json.loads(json.dumps(stats(zoo), allow_nan=False))
    assert (found["entries"], found["failures"]) == (4, 1)
    assert found["entries_by_kind"] == {"episodic": 3, "finetune": 1}
    assert found["entries_by_plan"] == {"branch": 2, "finetune": 1, "trunk": 1}
    assert found["gain_by_plan"]["branch"] == {"mean": 2, "min": 1, "max": 3, "entries": 2}
    assert {k: v["mean"] for k, v in found["gain_by_dataset"].items()} == {"stripes+1": 4, "stripes": 2, "bands": -2}
    assert {k: v["mean"] for k, v in found["gain_by_domain"].items()} == {"pooled": 4, "plain": -0.5, "invert": 3}
    assert found["delta_norm_by_plan"] == pytest.approx({"trunk": 2, "branch": 1, "finetune": 1}, rel=1e-5)
    assert found["hours"] == 1
    assert found["entries_per_hour"] == 4
    assert found["bytes"] == sum(p.stat().st_size for p in (zoo.path / "entries").iterdir())
    assert found["licences"] == {"CC0": ["bands", "stripes"], "MIT": ["bands"]}
    assert found["zoo"]["held_out"] == ["secret"]


def test_an_empty_zoo_has_figures_and_no_picture(empty, tmp_path):
    found = json.loads(json.dumps(stats(empty), allow_nan=False))
    assert (found["entries"], found["entries_per_hour"], found["gain_by_plan"]) == (0, None, {})
    with pytest.raises(ZooError, match="no entries to draw"):
        draw_stats(empty, tmp_path / "stats.png")


def test_the_picture_is_a_png(zoo, tmp_path):
    path = tmp_path / "new" / "stats.png"
    draw_stats(zoo, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_names_are_no_formulas(empty, tmp_path):
    write(empty, tiny_task(plan="$x_{$", datasets=("$a_{$",)), 0.0, 0.0)
    draw_stats(empty, tmp_path / "one.png")
    assert (tmp_path / "one.png").exists()
