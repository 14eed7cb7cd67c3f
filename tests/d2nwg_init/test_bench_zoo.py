"""Both methods of `bench zoo` do the same tasks, on the same images, from the same start."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from d2nwg_init.benchmarks.fine_tuning import accuracy
from d2nwg_init.benchmarks.plain_loop import loader_accuracy, plain_loop, write_folders
from d2nwg_init.benchmarks.results import Row
from d2nwg_init.benchmarks.zoo import ALL, METHODS, accuracies, bench_recipe, figure, run_zoo_benchmark, start_model
from tests.cli.conftest import fail, succeed
from tests.d2nwg_init.conftest import new_model
from tests.zoo_builder.synthetic import MODEL, SIZE, random_body, striped_dataset, tiny_task, write_npz
from zoo_builder.backbones import BackboneSpec, body_state, prepare_images
from zoo_builder.checkpoint import read_tensors, write_atomically
from zoo_builder.domain_images import SharedImages
from zoo_builder.job import Device
from zoo_builder.model_stack import shifted
from zoo_builder.scoring import Probe, Trial, score
from zoo_builder.store import Zoo
from zoo_builder.tasks import Plan, Training, ZooRecipe

RECIPE = """
size = 32
support = 24
held_out = ["secret"]
plans = []
"""
NAMES = ("bands", "lines", "stripes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Datasets, one of them held out, a recipe and a base."""
    path = tmp_path_factory.mktemp("bench")
    (path / "data").mkdir()
    for seed, name in enumerate((*NAMES, "secret")):
        write_npz(path / "data" / f"{name}.npz", striped_dataset(name, seed=seed))
    (path / "recipe.toml").write_text(RECIPE)
    write_atomically(path / "base.safetensors", body_state(random_body()))
    return path


@pytest.fixture(scope="module")
def arguments(folder):
    return ("bench", "zoo", "--data", folder / "data", "--base", folder / "base.safetensors", "--recipe",
            folder / "recipe.toml", "--steps", 3, "--workers", 1)  # fmt: skip


@pytest.fixture(scope="module")
def report(arguments, folder):
    printed = json.loads(succeed(*arguments, "--tasks", 2, "--json", "--out", folder / "out" / "zoo.json"))
    assert json.loads((folder / "out" / "zoo.json").read_text()) == printed
    return printed


@pytest.fixture(scope="module")
def task():
    return tiny_task("finetune", training=Training(steps=3, learning_rates=(0.01,), batch_size=16))


@pytest.fixture(scope="module")
def images(folder, task):
    shared = SharedImages(folder / "arrays", SIZE, lambda name: striped_dataset(name, train=60, test=25))
    return shared.view("stripes", "plain", task)


def test_both_methods_are_measured_on_the_same_tasks(report):
    rows = [Row(**r) for r in report["rows"]]
    assert {(r.device, r.step) for r in rows} == {("cpu", 3)}
    tasks = [[(r.dataset, r.seed) for r in rows if r.method == m and r.dataset != ALL] for m in METHODS[:2]]
    assert tasks[0] == tasks[1]
    assert {name for name, _ in tasks[0]} == {d["name"] for d in report["data"]} == {"bands", "lines"}
    for method in METHODS[:2]:
        assert figure(rows, method, "entries_per_hour") > 0
        assert figure(rows, method, "test_accuracy") == pytest.approx(sum(accuracies(rows, method)) / 2)


@pytest.mark.usefixtures("no_worker_processes")
def test_models_trained_at_once_are_measured_against_one_at_a_time(folder):
    recipe = bench_recipe(ZooRecipe((), ("secret",), size=SIZE, support=24), NAMES, 2, steps=3)
    base = folder / "base.safetensors"
    rows = run_zoo_benchmark(recipe, 2, BackboneSpec(MODEL), base, folder / "data", 1, Device("cpu", at_once=2))
    assert {r.method for r in rows} == set(METHODS)
    assert accuracies(rows, "builder") == pytest.approx(accuracies(rows, "one_at_a_time"), abs=100 / 24 + 0.01)
    assert figure(rows, "builder", "entries_per_hour", "cuda") != figure(rows, "builder", "entries_per_hour", "cuda")


@pytest.mark.usefixtures("no_worker_processes")
def test_table_tells_the_ratio_and_what_was_not_measured(arguments):
    text = " ".join(succeed(*arguments, "--tasks", 1).split())
    assert "times as many entries" in text
    assert "not measured" in text


def test_held_out_dataset_is_refused(arguments, folder):
    (folder / "wrong.toml").write_text('datasets = ["secret"]\n' + RECIPE)
    assert "which it holds out" in fail(*arguments, "--recipe", folder / "wrong.toml")


def test_tasks_are_spread_over_the_datasets_then_over_seeds():
    given = ZooRecipe((Plan("trunk", "episodic", Training(400)),), ("secret",), size=48, support=30)
    few, many = (bench_recipe(given, NAMES, count, steps=7) for count in (2, 5))
    assert few.datasets == ("bands", "lines")
    assert many.datasets == NAMES
    assert [len(r.datasets) * r.plans[0].seeds for r in (few, many)] == [2, 6]
    assert (few.size, few.support, few.held_out) == (48, 30, ("secret",))
    assert [(p.kind, p.scope, p.domains, p.training.steps) for p in few.plans] == [("finetune", "all", ("plain",), 7)]


def read_back(place):
    """Images and labels of a folder of class folders, in the order in which they were written."""
    data = ImageFolder(str(place))
    data.samples.sort(key=lambda sample: Path(sample[0]).name)
    read = [(pil_to_tensor(image), label) for image, label in data]
    return torch.stack([image for image, _ in read]), torch.tensor([label for _, label in read])


def test_png_files_are_the_builders_images_bit_by_bit(images, task, tmp_path):
    write_folders(images, task, tmp_path)
    x, y = read_back(tmp_path / "train")
    assert torch.equal(x, images.x_train)
    assert torch.equal(y, images.y_train)


def test_test_images_are_those_that_the_builder_scores(task, tmp_path):
    shared = SharedImages(tmp_path / "arrays", SIZE, lambda name: striped_dataset(name, test=1010))
    images = shared.view("stripes", "plain", task)
    write_folders(images, task, tmp_path)
    x, y = read_back(tmp_path / "test")
    body = random_body()
    probe = Probe.of(body, images, task.support, 1000, task.seed, "rescaled")
    assert torch.equal(y, probe.query_labels)
    assert torch.equal(prepare_images(body, x), probe.images[task.support :])


def test_labels_stay_where_a_class_has_no_test_image(images, task, tmp_path):
    keep = images.y_test != 0
    some = replace(images, x_test=images.x_test[keep], y_test=images.y_test[keep])
    write_folders(some, task, tmp_path)
    read = ImageFolder(str(tmp_path / "test"), allow_empty=True)
    assert torch.tensor(read.targets).bincount(minlength=3).tolist() == images.y_test[keep].bincount().tolist()


def test_start_is_the_base_with_a_head_that_knows_the_classes(folder, images, task):
    zoo = Zoo.create(folder / "zoo", BackboneSpec(MODEL), body_state(random_body()), ZooRecipe((), (), size=SIZE))
    model = start_model(zoo, images, task)
    body = random_body()
    probe = Probe.of(body, images, task.support, 1000, task.seed, "rescaled")
    base = shifted(zoo.base(), probe.fit)
    assert all(torch.equal(v, base[k]) for k, v in model.named_parameters() if k in base)
    test = DataLoader(TensorDataset(probe.images[task.support :], probe.query_labels), 16)
    assert loader_accuracy(model, test) == pytest.approx(score(body, [Trial(probe, {})])[0].accuracy)


def test_plain_loop_learns_and_leaves_the_weights_it_measured(images, task, tmp_path):
    write_folders(images, task, tmp_path)
    model = new_model()
    start = images_accuracy(model, images)
    longer = replace(task, training=Training(steps=40, learning_rates=(0.05,), batch_size=16))
    measured = plain_loop(model, tmp_path, longer)
    assert measured > start + 20
    written = new_model(seed=1)
    written.load_state_dict(read_tensors(tmp_path / "model.safetensors")[0])
    assert measured == pytest.approx(images_accuracy(written, images))


def images_accuracy(model, images):
    return accuracy(model, prepare_images(model, images.x_test), images.y_test)
