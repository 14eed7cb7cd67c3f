"""A recipe -> tasks: which, in what order, and under which ids."""

from dataclasses import fields, replace

import pytest

from tests.zoo_builder.synthetic import tiny_task
from zoo_builder.domains import DOMAINS
from zoo_builder.errors import RecipeError
from zoo_builder.tasks import Group, Training, ZooRecipe, plan_tasks

LETTERS = Group("letters", ("latin", "greek", "thai"), ("plain", "invert"), seeds=2)
PHOTOS = Group("photos", ("cats",), ("plain", "gray", "edges"), trunk_domains=("plain",), learning_rate=0.5)


def recipe(*groups: Group, **changes: object) -> ZooRecipe:
    return replace(ZooRecipe(Training(4), Training(2), groups or (LETTERS, PHOTOS), held_out=("secret",)), **changes)


def of_kind(tasks, kind):
    return [t for t in tasks if t.kind == kind]


def test_each_group_has_a_trunk_and_each_dataset_a_branch_for_every_domain_and_seed():
    tasks = plan_tasks(recipe())
    assert [(t.group, t.dataset, t.related) for t in of_kind(tasks, "trunk")] == [
        ("letters", "latin", ("greek", "thai")),
        ("photos", "cats", ()),
    ]
    branches = [(t.dataset, t.domains[0], t.seed) for t in of_kind(tasks, "branch")]
    letters = {(n, d, s) for n in LETTERS.datasets for d in LETTERS.domains for s in (0, 1)}
    assert set(branches) == letters | {("cats", d, 0) for d in PHOTOS.domains}
    assert len(branches) == len(set(branches))
    assert not of_kind(tasks, "finetune")


def test_each_dataset_is_fine_tuned_plainly_where_the_recipe_says_so():
    tasks = of_kind(plan_tasks(recipe(finetune=Training(7))), "finetune")
    assert [t.dataset for t in tasks] == [*LETTERS.datasets, "cats"]
    assert {(t.domains, t.related, t.start, t.training.steps) for t in tasks} == {(("plain",), (), None, 7)}


def test_trunks_come_before_the_branches_that_go_on_from_them():
    done, groups = set(), {}
    for task in plan_tasks(recipe(finetune=Training(1))):
        if task.kind == "branch":
            assert task.start in done
            assert groups[task.start] == task.group
        else:
            assert task.start is None
        done.add(task.id)
        groups[task.id] = task.group


def test_branches_relate_to_the_other_datasets_of_their_group():
    for task in of_kind(plan_tasks(recipe()), "branch"):
        group = LETTERS if task.group == "letters" else PHOTOS
        assert task.dataset not in task.related
        assert {task.dataset, *task.related} == set(group.datasets)


def test_trunk_sees_all_domains_unless_its_own_are_given():
    letters, photos = of_kind(plan_tasks(recipe()), "trunk")
    assert letters.domains == LETTERS.domains
    assert photos.domains == ("plain",)


def test_group_learning_rate_holds_for_its_trunk_and_branches():
    tasks = plan_tasks(recipe(finetune=Training(1, learning_rate=0.1)))
    rates = {(t.group, t.kind): t.training.learning_rate for t in tasks}
    assert rates["photos", "trunk"] == rates["photos", "branch"] == 0.5
    assert rates["photos", "finetune"] == rates["letters", "finetune"] == 0.1
    assert rates["letters", "trunk"] == Training(4).learning_rate


def test_class_subset_is_for_what_is_scored_and_not_for_trunks():
    tasks = plan_tasks(recipe(replace(PHOTOS, class_subset=5), finetune=Training(1)))
    assert {t.kind: t.class_subset for t in tasks} == {"trunk": None, "branch": 5, "finetune": 5}


def test_ids_are_unique_and_are_file_names():
    ids = [t.id for t in plan_tasks(recipe(finetune=Training(1)))]
    assert len(set(ids)) == len(ids)
    assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for i in ids)


OTHER = {
    "kind": "finetune",
    "group": "other",
    "dataset": "blobs",
    "related": ("blobs",),
    "domains": ("invert",),
    "training": Training(3),
    "own_share": 0.6,
    "class_subset": 2,
    "size": 48,
    "support": 25,
    "seed": 1,
    "start": "trunk-all-0-01234567",
}


def test_id_is_the_same_for_the_same_settings_and_another_for_any_other():
    task = tiny_task()
    assert set(OTHER) == {f.name for f in fields(task)}
    ids = {replace(task, **{name: value}).id for name, value in OTHER.items()}
    ids |= {replace(task, training=replace(task.training, **t)).id for t in ({"batch_size": 8}, {"classes": 4})}
    assert len(ids | {task.id}) == len(OTHER) + 3
    assert tiny_task().id == task.id == "branch-stripes-plain-0-" + task.id[-8:]


def test_another_trunk_means_other_branches():
    short, long = plan_tasks(recipe()), plan_tasks(recipe(trunk=Training(5)))
    assert not {t.id for t in short} & {t.id for t in long}


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (Group("g", ("a", "secret")), r"'g' uses \['secret'\], which the recipe holds out"),
        (Group("g", ()), "'g' needs at least one dataset"),
        (Group("g", ("a",), ()), "at least one dataset and one domain"),
        (Group("g", ("a",), ("plain", "rotat")), "unknown domain 'rotat'; did you mean 'rotate'"),
        (Group("g", ("a",), trunk_domains=("rotat",)), "did you mean 'rotate'"),
        (Group("g", ("a", "a")), "'a'"),
    ],
)
def test_group_that_cannot_be_built_is_refused(group, words):
    with pytest.raises(RecipeError, match=words):
        plan_tasks(recipe(LETTERS, group))


def test_two_groups_of_one_name_are_refused():
    with pytest.raises(RecipeError, match="letters"):
        plan_tasks(recipe(LETTERS, LETTERS))


def test_all_domains_can_be_planned():
    assert len(plan_tasks(recipe(Group("g", ("a",), tuple(DOMAINS))))) == 1 + len(DOMAINS)
