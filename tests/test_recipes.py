"""Recipes: what ships parses, and mistakes are named."""

import pytest

from pretrained_generators.training.recipe import GeneratorRecipe
from zoo_builder.errors import RecipeError
from zoo_builder.recipe import parse_config, read_recipe
from zoo_builder.tasks import ZooRecipe, plan_tasks

MINIMAL = {
    "trunk": {"steps": 2},
    "branch": {"steps": 2},
    "held_out": ["secret"],
    "groups": [{"name": "g", "datasets": ["a", "b"]}],
}


def with_(**changes):
    return parse_config({**MINIMAL, **changes}, ZooRecipe)


def test_shipped_recipes_parse_and_plan_a_hundred_tasks():
    tasks = plan_tasks(read_recipe("small", ZooRecipe, "zoo_builder"))
    assert len(tasks) >= 100
    assert len({t.id for t in tasks}) == len(tasks)
    assert read_recipe("small", GeneratorRecipe, "pretrained_generators").name == "test_resnet-64"


def test_no_task_of_the_shipped_recipe_touches_a_held_out_dataset():
    recipe = read_recipe("small", ZooRecipe, "zoo_builder")
    used = {n for t in plan_tasks(recipe) for n in (t.dataset, *t.related)}
    assert not used & set(recipe.held_out)
    assert len(recipe.held_out) == 17


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": 32}, "'size'"),
        ({"trunk": {"step": 3}}, "'steps'"),
        ({"groups": [{"name": "g", "datasets": ["a"], "seed": 2}]}, "'seeds'"),
        ({"size": "large"}, "size"),
        ({"trunk": {}}, "steps"),
    ],
)
def test_mistakes_name_the_key_and_the_nearest(changes, words):
    with pytest.raises(RecipeError, match=words):
        with_(**changes)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"name": "g", "datasets": ["a", "secret"]}, "secret"),
        ({"name": "g", "datasets": []}, "at least one"),
        ({"name": "g", "datasets": ["a"], "domains": ["rotat"]}, "'rotate'"),
    ],
)
def test_groups_that_cannot_be_built_are_refused(group, words):
    with pytest.raises(RecipeError, match=words):
        plan_tasks(with_(groups=[group]))


def test_branches_start_from_their_groups_trunk_and_ids_follow_settings():
    tasks = plan_tasks(with_())
    trunk = tasks[0]
    assert [t.kind for t in tasks] == ["trunk", "branch", "branch"]
    assert all(t.start == trunk.id for t in tasks[1:])
    longer = plan_tasks(with_(trunk={"steps": 3}))
    assert not {t.id for t in tasks} & {t.id for t in longer}
    assert plan_tasks(with_(groups=[{**MINIMAL["groups"][0], "learning_rate": 0.5}]))[1].training.learning_rate == 0.5
