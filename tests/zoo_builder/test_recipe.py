"""Recipes: what ships parses, and mistakes are named."""

import dataclasses
import re

import pytest

from zoo_builder.errors import RecipeError
from zoo_builder.recipe import parse_config, read_recipe
from zoo_builder.tasks import Plan, Training, ZooRecipe, plan_tasks

MINIMAL = {
    "held_out": ["secret"],
    "plans": [{"name": "p", "kind": "episodic", "training": {"steps": 3, "learning_rates": [1]}}],
}
TOML = """
held_out = ["secret"]
[[plans]]
name = "p"
kind = "episodic"
training = { steps = 3, learning_rates = [1] }
"""


def with_plan(**changes):
    return {"plans": [MINIMAL["plans"][0] | changes]}


def test_values_and_defaults_land_in_frozen_dataclasses():
    recipe = parse_config(MINIMAL, ZooRecipe)
    assert recipe.plans == (Plan("p", "episodic", Training(steps=3, learning_rates=(1.0,))),)
    assert (recipe.size, recipe.datasets, recipe.leakage) == (64, (), "refuse")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.size = 32


def test_a_file_reads_as_its_values(tmp_path):
    (tmp_path / "zoo.toml").write_text(TOML)
    for path in (tmp_path / "zoo.toml", str(tmp_path / "zoo.toml")):
        assert read_recipe(path, ZooRecipe, "zoo_builder") == parse_config(MINIMAL, ZooRecipe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": 32}, "unknown key 'sizes'; did you mean 'size'"),
        (
            with_plan(training={"steps": 1, "learning_rate": 3}),
            "'plans.0.training.learning_rate'; did you mean 'learning_rates'",
        ),
        (with_plan(seed=2), "'plans.0.seed'; did you mean 'seed' or 'seeds'"),
    ],
)
def test_unknown_key_is_placed_and_the_nearest_named(changes, words):
    with pytest.raises(RecipeError, match=re.escape(words)):
        parse_config(MINIMAL | changes, ZooRecipe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "large"}, r"^size: .* got 'large'"),
        ({"size": 64.5}, r"^size: .* got 64.5"),
        (with_plan(training={}), r"^plans\.0\.training\.steps: "),
        (with_plan(training=5), r"^plans\.0\.training: .* got 5"),
        (with_plan(kind="episodes"), r"^plans\.0\.kind: .*'episodic'.* got 'episodes'"),
        (with_plan(datasets=[3]), r"^plans\.0\.datasets\.0: .* got 3"),
        ({"held_out": "secret"}, r"^held_out: .* got 'secret'"),
        ({"plans": {"name": "g"}}, r"^plans: "),
    ],
)
def test_wrong_or_missing_value_is_placed(changes, words):
    with pytest.raises(RecipeError, match=words):
        parse_config(MINIMAL | changes, ZooRecipe)


def test_something_else_than_a_table_is_refused():
    with pytest.raises(RecipeError, match="top level"):
        parse_config([1, 2], ZooRecipe)


@pytest.mark.parametrize("changes", [{"size": "64"}, {"seed": True}, {"support": 2.0}])
def test_value_that_could_be_converted_is_a_wrong_type_all_the_same(changes):
    with pytest.raises(RecipeError, match=r"size|seed|support"):
        parse_config(MINIMAL | changes, ZooRecipe)


def test_unknown_recipe_names_the_nearest_that_ships():
    with pytest.raises(RecipeError, match=r"'smal'.* did you mean 'small'"):
        read_recipe("smal", ZooRecipe, "zoo_builder")


@pytest.mark.parametrize("text", ["size = ", "[trunk]\nsteps = 1\n[trunk]", "sizes = 3"])
def test_file_that_cannot_be_used_is_named(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"mine\.toml: "):
        read_recipe(tmp_path / "mine.toml", ZooRecipe, "zoo_builder")


def test_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"mine\.toml: "):
        read_recipe(tmp_path / "mine.toml", ZooRecipe, "zoo_builder")


LEAST = dict.fromkeys(["benchmark", "small", "standard", "gpu", "imagenet-resnet50"], 30) | {"imagenet-mobilenet": 25}


@pytest.mark.parametrize("name", LEAST)
def test_shipped_recipes_plan_unique_tasks(name):
    recipe = read_recipe(name, ZooRecipe, "zoo_builder")
    tasks = plan_tasks(recipe, [[f"set{i}" for i in range(10)], ["other"]])
    assert len(tasks) >= LEAST[name]
    assert len({t.id for t in tasks}) == len(tasks)
    assert recipe.held_out
    assert not set(recipe.datasets) & set(recipe.held_out)
