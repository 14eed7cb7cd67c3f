"""A recipe -> tasks: which, in what order, and under which ids."""

from dataclasses import fields, replace

import pytest

from tests.zoo_builder.synthetic import tiny_task
from zoo_builder.domains import DOMAINS
from zoo_builder.errors import RecipeError
from zoo_builder.tasks import Plan, Training, ZooRecipe, choose_datasets, plan_tasks

CLUSTERS = [["greek", "latin", "thai"], ["cats"]]
TRUNK = Plan("trunk", "episodic", Training(4), over="cluster", domains=("plain", "invert"), pool_domains=True)
BRANCH = Plan(
    "branch",
    "episodic",
    Training(2, rate_of_start=0.5),
    own_share=0.5,
    domains=("plain", "invert"),
    start="trunk",
    seeds=2,
)


def recipe(*plans: Plan, **changes: object) -> ZooRecipe:
    return replace(ZooRecipe(plans or (TRUNK, BRANCH), held_out=("secret",)), **changes)


def of_plan(tasks, name):
    return [t for t in tasks if t.plan == name]


def test_a_plan_over_clusters_has_a_task_for_each():
    trunks = of_plan(plan_tasks(recipe(), CLUSTERS), "trunk")
    assert [t.datasets for t in trunks] == [("greek", "latin", "thai"), ("cats",)]
    assert {(t.domains, t.related, t.start) for t in trunks} == {(("plain", "invert"), (), None)}


def test_a_plan_over_datasets_has_a_task_for_each_domain_and_seed():
    branches = of_plan(plan_tasks(recipe(), CLUSTERS), "branch")
    found = [(t.datasets, t.domains, t.seed) for t in branches]
    names = [n for cluster in CLUSTERS for n in cluster]
    assert sorted(found) == sorted(((n,), (d,), s) for n in names for d in BRANCH.domains for s in (0, 1))


def test_a_plan_over_all_has_one_task():
    (task,) = plan_tasks(recipe(replace(TRUNK, over="all")), CLUSTERS)
    assert task.datasets == ("greek", "latin", "thai", "cats")


def test_a_plan_of_some_datasets_leaves_the_others_out():
    plan = replace(TRUNK, datasets=("latin", "cats"))
    assert [t.datasets for t in plan_tasks(recipe(plan), CLUSTERS)] == [("latin",), ("cats",)]


def test_a_task_comes_after_the_one_over_its_dataset_that_it_goes_on_from():
    done = {}
    for task in plan_tasks(recipe(), CLUSTERS):
        if task.plan == "branch":
            assert set(task.datasets) <= set(done[task.start].datasets)
        done[task.id] = task


def test_branches_relate_to_the_rest_of_their_cluster_where_they_draw_from_it():
    for task in of_plan(plan_tasks(recipe(), CLUSTERS), "branch"):
        cluster = next(c for c in CLUSTERS if task.datasets[0] in c)
        assert sorted([*task.datasets, *task.related]) == cluster
    alone = plan_tasks(recipe(TRUNK, replace(BRANCH, own_share=1.0)), CLUSTERS)
    assert {t.related for t in alone} == {()}


def test_ids_are_unique_and_are_file_names():
    tasks = plan_tasks(recipe(), [*CLUSTERS, ["torchvision:MNIST", "hf:org/name@0a1b"]])
    ids = [t.id for t in tasks]
    assert len(set(ids)) == len(ids)
    assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+.") for i in ids)


OTHER = {
    "plan": "other",
    "kind": "finetune",
    "datasets": ("blobs",),
    "related": ("blobs",),
    "domains": ("invert",),
    "scope": "head+norm",
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
    short = plan_tasks(recipe(), CLUSTERS)
    long = plan_tasks(recipe(replace(TRUNK, training=Training(5)), BRANCH), CLUSTERS)
    assert not {t.id for t in short} & {t.id for t in long}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domains": ()}, "at least one domain"),
        ({"training": Training(4, learning_rates=())}, "one learning rate"),
        ({"training": Training(0)}, "one step"),
        ({"training": Training(1, batch_size=0)}, "plan 'mine': batch_size must be 1 or more, got 0"),
        ({"training": Training(1, classes=0)}, "classes must be 1 or more"),
        ({"class_subset": 0}, "class_subset must be 1 or more"),
        ({"seeds": 0}, "seeds must be 1 or more"),
        ({"domains": ("plain", "rotat")}, "unknown domain 'rotat'; did you mean 'rotate'"),
        ({"domains": ("plain", "plain")}, r"\['plain'\] given more than once"),
        ({"datasets": ("cats", "cats")}, r"\['cats'\] given more than once"),
        ({"start": "trnk"}, "'trnk'; did you mean 'trunk'"),
        ({"start": "mine"}, "a plan before it, got 'mine'"),
        ({"start": "trunk", "over": "all"}, "no task of its start 'trunk' is over"),
        ({"training": Training(4, rate_of_start=1.0)}, "rate_of_start needs a start"),
        ({"training": Training(1, learning_rates=(0.1, -1.0))}, "must be above 0, got -1"),
        ({"training": Training(1, learning_rates=(float("nan"),))}, "must be above 0, got nan"),
        ({"start": "trunk", "training": Training(1, rate_of_start=0.0)}, "must be above 0, got 0"),
        ({"own_share": 7.0}, "plan 'mine': own_share is a share of the episodes, from 0 to 1, got 7"),
        ({"own_share": 0.5, "kind": "finetune"}, "a task of the kind 'finetune' has none"),
        ({"scope": "head"}, "an episodic task solves its head"),
        ({"name": "lr/high"}, "plan 'lr/high': its name begins the names of its entries' files"),
        ({"name": ""}, "expected letters, digits and any of"),
        ({"name": "trunk"}, r"plans: \['trunk'\] given more than once"),
    ],
)
def test_plan_that_cannot_be_built_is_refused(changes, words):
    plan = replace(Plan("mine", "episodic", Training(1)), **changes)
    with pytest.raises(RecipeError, match=words):
        plan_tasks(recipe(TRUNK, plan), CLUSTERS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plans": ()}, "has no plans, and hence no task"),
        ({"support": 0}, "the recipe: support must be 1 or more, got 0"),
        ({"size": 0}, "size must be 1 or more"),
        ({"max_clusters": 0}, "max_clusters must be 1 or more"),
    ],
)
def test_recipe_that_cannot_be_built_is_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        plan_tasks(recipe(**changes), CLUSTERS)


def test_all_domains_can_be_planned():
    plan = Plan("p", "episodic", Training(1), domains=tuple(DOMAINS))
    assert len(plan_tasks(recipe(plan), [["a"]])) == len(DOMAINS)


def test_all_datasets_but_the_held_out_are_taken_where_none_is_named():
    assert choose_datasets(recipe(), ["b", "secret", "a"]) == ("a", "b")
    assert choose_datasets(recipe(datasets=("b", "torchvision:MNIST")), ["a", "b"]) == ("b", "torchvision:MNIST")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"datasets": ("a", "secret")}, r"\['secret'\], which it holds out"),
        ({"plans": (replace(TRUNK, datasets=("secret",)),)}, r"\['secret'\], which it holds out"),
        ({"datasets": ("a", "lettrs")}, "'lettrs', which is not there; did you mean 'letters'"),
        ({"datasets": ("a", "a")}, "given more than once"),
        ({"held_out": ("a", "letters")}, "No dataset is left"),
        ({"datasets": ("a",), "plans": (replace(TRUNK, datasets=("letters",)),)}, r"over \['letters'\], which"),
    ],
)
def test_datasets_that_cannot_be_used_are_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        choose_datasets(recipe(**changes), ["a", "letters"])


def test_a_folder_without_datasets_is_told_as_such():
    with pytest.raises(RecipeError, match=r"no dataset in the data folder.*give the folder that it lies in"):
        choose_datasets(recipe(), [])


def test_held_out_dataset_is_known_by_any_of_its_names():
    held_out = ("cifar10", "torchvision:Flowers102", "solar_cells")
    for name in (
        "cifar10",
        "torchvision:CIFAR10",
        "hf:uoft-cs/cifar10@0b2714e?label=label",
        "plugin:CIFAR-10",
        "hf:data/cifar10/",
        "cifar10.npz",
    ):
        with pytest.raises(RecipeError, match="which it holds out"):
            choose_datasets(ZooRecipe((), held_out, datasets=(name,)), ())
    assert choose_datasets(ZooRecipe((), held_out), ["CIFAR10", "flowers102", "cifar100"]) == ("cifar100",)
