"""bench sensitivity: choices differ by one thing, zoos are nested, and all that is named is trained and measured."""

import dataclasses
import json
from dataclasses import replace

import pytest

from d2nwg_init.benchmarks import sensitivity, sensitivity_page
from d2nwg_init.benchmarks.results import AS_IT_IS, ChoiceRow, source_commit
from d2nwg_init.benchmarks.sensitivity import HYPER_PARAMETERS, MeasuredOn, SmallerZoos, choices, run_sensitivity
from d2nwg_init.benchmarks.sensitivity_page import accuracy, block, by_zoo
from d2nwg_init.benchmarks.transfer import regressor
from pretrained_generators.training.recipe import GeneratorRecipe
from tests.cli.conftest import fail, succeed
from tests.pretrained_generators.small import RECIPE_TOML
from tests.zoo_builder.synthetic import striped_dataset, write_npz
from tests.zoo_builder.tiny_zoo import RECIPE, SHORT, build_zoo, write_data
from zoo_builder.checkpoint import read_tensors, write_atomically
from zoo_builder.errors import RecipeError
from zoo_builder.recipe import read_recipe
from zoo_builder.tasks import Plan, ZooRecipe

ROWS = ("zoo_selected", "generated_mean")  # which refine nothing, and are quick
NAMES = ("stripes", "bands", "dots", "secret")
ZOO_RECIPE = """
size = 32
support = 24
held_out = ["secret", "kmnist"]
leakage = "off"
[[plans]]
name = "universal"
kind = "episodic"
over = "all"
training = {steps = 2, batch_size = 16}
[[plans]]
name = "branch"
kind = "episodic"
start = "universal"
domains = ["plain", "invert", "rotate", "blur"]
training = {steps = 2, batch_size = 16}
"""


def flat(value):
    return {
        f"{name}.{key}": v
        for name, part in dataclasses.asdict(value).items()
        for key, v in (part.items() if isinstance(part, dict) else [("", part)])
    }


def test_each_choice_differs_from_the_recipe_by_one_number(tmp_path):
    recipe = read_recipe("benchmark", GeneratorRecipe, "pretrained_generators")
    first, *others = choices("s3://bucket/zoo", recipe, (4, 8), tmp_path)
    assert first.label == AS_IT_IS
    assert first.recipe == recipe
    numbers = [c for c in others if c.zoo == first.zoo]
    assert len(numbers) == len(HYPER_PARAMETERS)
    for choice in numbers:
        changed = {k: v for k, v in flat(choice.recipe).items() if v != flat(recipe)[k]}
        assert [f"{k} = {v:g}" for k, v in changed.items()] == [choice.label]
    assert [c.zoo for c in others if c.recipe == recipe] == [str(tmp_path / "zoo-4"), str(tmp_path / "zoo-8")]


def test_a_stage_that_is_left_out_is_not_varied(tmp_path):
    recipe = read_recipe("benchmark", GeneratorRecipe, "pretrained_generators")
    recipe = replace(recipe, functional_training=replace(recipe.functional_training, steps=0))
    assert not any("functional_training.steps" in c.label for c in choices("zoo", recipe, (), tmp_path))


def test_smaller_zoos_are_nested_and_hold_what_a_plan_names(tmp_path):
    data = write_data(tmp_path / "data", (*(f"set{i}" for i in range(7)), "named", "secret"))
    plans = (*RECIPE.plans, Plan("source", "episodic", SHORT, datasets=("named",)))
    smaller = SmallerZoos(replace(RECIPE, plans=plans), (2, 4, 6))
    sizes = [set(smaller.recipe_of(size, data).datasets) for size in smaller.sizes]
    assert [len(names) for names in sizes] == [2, 4, 6]
    assert {"named"} < sizes[0] < sizes[1] < sizes[2]
    assert not any("secret" in names for names in sizes)
    for size in (1, 8):
        with pytest.raises(RecipeError, match="more than 1 and fewer than 8"):
            smaller.recipe_of(size, data)


def test_a_choice_that_cannot_be_trained_is_named_before_any_is(tmp_path):
    recipe = read_recipe("benchmark", GeneratorRecipe, "pretrained_generators")
    recipe = replace(recipe, vae=replace(recipe.vae, latent=1))
    data = write_data(tmp_path / "data", ("stripes",))
    measured_on = MeasuredOn(("stripes",), 1, ("branch",), "universal")
    with pytest.raises(RecipeError, match=r"choice 'vae.latent = 0' cannot be trained: .*latent"):
        run_sensitivity("no zoo", recipe, SmallerZoos(RECIPE, ()), measured_on, data, (), tmp_path)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(regressor, "STAGE", replace(regressor.STAGE, steps=2))
    for module in (sensitivity, sensitivity_page):
        monkeypatch.setattr(module, "ROWS", ROWS)
    data = write_data(tmp_path / "data", NAMES)
    write_npz(data / "kmnist.npz", striped_dataset("kmnist", seed=7))
    (tmp_path / "zoo.toml").write_text(ZOO_RECIPE)
    (tmp_path / "generator.toml").write_text(RECIPE_TOML)
    return tmp_path


def arguments(files, *more):
    command = ["bench", "sensitivity", "--zoo", files / "zoo", "--zoo-recipe", files / "zoo.toml", "--sizes", "2"]
    command += ["--recipe", files / "generator.toml", "--data", files / "data", "--datasets", "kmnist"]
    return [*command, "--work", files / "work", "--out", files / "sensitivity.json", "--workers", "1", *more]


@pytest.mark.usefixtures("no_worker_processes")
def test_generators_are_trained_measured_and_drawn_and_the_next_run_takes_up_what_is_there(files):
    recipe = read_recipe(files / "zoo.toml", ZooRecipe, "zoo_builder")
    build_zoo(files / "data", files / "zoo", recipe)
    few = ("--choices", "as it is, 2 datasets")
    assert "2 datasets" in succeed(*arguments(files, *few))
    report = json.loads((files / "sensitivity.json").read_text())
    rows = [ChoiceRow(**r) for r in report["rows"]]
    assert {(r.choice, r.method) for r in rows if r.metric == "test_accuracy"} == {
        (choice, method) for choice in (AS_IT_IS, "2 datasets") for method in ROWS
    }
    assert by_zoo(rows) == {2: "2 datasets", 3: AS_IT_IS}
    assert all(0 <= accuracy(rows, c, m) <= 100 for c in (AS_IT_IS, "2 datasets") for m in ROWS)
    assert "| 2 datasets | " in block(report)
    assert report["commits"] == [source_commit() or "unknown"]
    for file in files.glob("work/*/cells/*generated_mean*"):  # of an earlier run
        tensors, metadata = read_tensors(file)
        about = json.loads(metadata["cell"]) | {"commit": "c0ffee"}
        write_atomically(file, tensors, {"cell": json.dumps(about)})
    again = json.loads(succeed(*arguments(files, *few, "--json")))
    assert again["rows"] == report["rows"]
    assert again["commits"] == sorted(["c0ffee", source_commit() or "unknown"])
    assert "did you mean 'vae.latent = " in fail(*arguments(files, "--choices", "vae.latent = 3"))
