import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from d2nwg_init.benchmarks.demo import METHODS, draw_curves, mean_accuracies, mean_seconds, run_demo
from d2nwg_init.benchmarks.drawn_block import replace_block
from d2nwg_init.benchmarks.fine_tuning import (
    FineTuning,
    accuracy,
    as_tensors,
    fine_tune,
    shuffled_loader,
    train_for,
    train_loader,
)
from d2nwg_init.benchmarks.never_worse import Draw, measure
from d2nwg_init.benchmarks.readme import results_block
from d2nwg_init.benchmarks.results import Row, results
from pretrained_generators.bundle import load_bundle
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, same, save_random_bundle
from tests.pretrained_generators.test_batchnorm_fit import leaning
from zoo_builder.backbones import image_statistics
from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import normalize_images, resize_images

SHORT = FineTuning(steps=(0, 2, 3))


@pytest.fixture(scope="module")
def dataset():
    parts = []
    for count, seed in ((48, 0), (24, 1)):
        images, labels = labelled_images(count, 3, seed)
        parts += [(images * 40 + 100).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(), labels.numpy()]
    return ImageDataset("bands", *parts, ("a", "b", "c"), "made up", "0" * 64)


@pytest.fixture(scope="module")
def rows(dataset, bundle):
    return run_demo(dataset, bundle, SHORT, seeds=1, num_samples=2)


def test_a_cycle_of_seconds_ends_with_them_and_with_a_low_rate(monkeypatch):
    """Each look at the clock is half a second later, and each step hence as long."""
    clock, rates, step = itertools.count(0, 0.5), [], torch.optim.AdamW.step
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    batch = torch.randn(4, 3, 1, 1), torch.tensor([0, 1, 0, 1])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    done = list(train_for(model, [batch], FineTuning(learning_rate=1.0), 10))
    assert done == [(i, i / 2) for i in range(1, 21)]
    assert rates[0] < rates[2] == max(rates) > rates[10] > rates[19]
    assert rates[19] < 0.02


def test_every_method_is_measured_at_every_step(rows):
    measured = {(r.method, r.sample, r.step) for r in rows if r.metric == "test_accuracy"}
    methods = {(m, None) for m in METHODS if m != "generated_mean"} | {("generated_mean", i) for i in range(2)}
    assert measured == {(m, i, s) for m, i in methods for s in SHORT.steps}
    assert {r.metric for r in rows} == {"test_accuracy", "seconds_initialise", "seconds_fine_tune"}
    assert {(r.bundle, r.dataset, r.seed) for r in rows} == {("tiny-random", "bands", 0)}


def test_solved_heads_start_far_above_random_ones(rows):
    start = {m: mean_accuracies(rows, m)[0] for m in METHODS}
    for method in ("solved", "generated_mean", "initialize"):
        assert start[method] > 85
    assert max(start["scratch"], start["pretrained"]) < 70


def test_the_rival_has_a_base_that_recalibrating_does_not_destroy(dataset, tmp_path):
    images = normalize_images(resize_images(dataset.x_train, 32), *image_statistics(new_model()))
    found = {}
    for fit in ("rescaled", "absorbed"):
        save_random_bundle(tmp_path / fit, generator=leaning(images, fit))
        bundle = load_bundle(tmp_path / fit)
        demo = mean_accuracies(run_demo(dataset, bundle, FineTuning(steps=(0,)), seeds=1, num_samples=1), "solved")[0]
        draw = Draw(0, "bands", "0" * 64, fit, "1" * 64, "random", None)
        found[fit] = demo, measure(draw, dataset, bundle)["step_0"]["base"]
    assert all(a > r + 20 for a, r in zip(found["absorbed"], found["rescaled"], strict=True))


def test_same_seed_measures_the_same(rows, dataset, bundle):
    again = run_demo(dataset, bundle, SHORT, seeds=1, num_samples=2)
    accuracies = [[r for r in part if r.metric == "test_accuracy"] for part in (rows, again)]
    assert accuracies[0] == accuracies[1]


def test_demo_leaves_the_bundle(dataset, bundle):
    before = copied(bundle.generator.state_dict())
    run_demo(dataset, bundle, FineTuning(steps=(0, 1)), seeds=1, num_samples=1)
    assert same(bundle.generator.state_dict(), before)


def test_fine_tuning_learns_and_measures_where_asked(dataset):
    model = new_model()
    loader = train_loader(dataset, model, size=32, batch_size=16, seed=0)
    test = as_tensors(dataset, model, 32, "test")
    measured = fine_tune(model, loader, test, FineTuning(steps=(0, 4, 60)))
    assert list(measured) == [0, 4, 60]
    assert measured[60] == accuracy(model, *test)
    assert measured[60] > measured[0] + 20


def test_no_steps_measure_only_the_start(dataset):
    model = new_model()
    before = copied(model.state_dict())
    test = labelled_images(12, 3)
    assert list(fine_tune(model, [], test, FineTuning(steps=(0,)))) == [0]
    assert same(model.state_dict(), before)


def test_loader_gives_every_image_once_in_the_order_of_its_seed(dataset):
    model = new_model()
    orders = [
        torch.cat([y for _, y in train_loader(dataset, model, size=32, batch_size=10, seed=s)]) for s in (0, 0, 1)
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert orders[0].bincount().tolist() == np.bincount(dataset.y_train).tolist()


@pytest.mark.parametrize(("count", "sizes"), [(17, [8, 8]), (16, [8, 8]), (5, [5])])
def test_no_image_is_trained_on_alone(count, sizes):
    loader = shuffled_loader(*labelled_images(count, 3), seed=0, batch_size=8, whole=True)
    assert [len(y) for _, y in loader] == sizes


def test_a_demo_of_one_image_more_than_whole_batches_trains(dataset, bundle):
    count = FineTuning.batch_size + 1
    more = (np.resize(getattr(dataset, k), (count, *getattr(dataset, k).shape[1:])) for k in ("x_train", "y_train"))
    one_more = dataclasses.replace(dataset, **dict(zip(("x_train", "y_train"), more, strict=True)))
    assert run_demo(one_more, bundle, FineTuning(steps=(0, 2)), seeds=1, num_samples=1)


def row(value, method="scratch", seed=0, step=0, metric="test_accuracy", sample=None, dataset="d"):
    return Row("b", dataset, method, seed, metric, value, "%", step=step, sample=sample)


def test_means_are_over_seeds_and_samples():
    rows = [row(10, seed=0), row(20, seed=1), row(50, step=5), row(99, method="solved"), row(7, metric="seconds_x")]
    assert mean_accuracies(rows, "scratch") == {0: 15, 5: 50}
    assert mean_seconds([row(2, metric="seconds_x"), row(4, metric="seconds_x"), *rows[:2]], "scratch", "x") == 3


@pytest.mark.parametrize("name", ["bands", "$x_{$", "a_b^c", "50% $"])
def test_curves_are_drawn_whatever_the_dataset_is_called(rows, tmp_path, name):
    path = tmp_path / "new" / "curves.png"
    draw_curves([dataclasses.replace(r, dataset=name) for r in rows], path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_results_hold_what_is_needed_to_measure_again(rows, dataset):
    report = json.loads(json.dumps(results("demo", [dataset], rows)))
    assert report.keys() == {"schema", "name", "command", "commit", "date", "machine", "versions", "data", "rows"}
    assert report["data"] == [{"name": "bands", "origin": "made up", "sha256": "0" * 64}]
    assert [Row(**r) for r in report["rows"]] == rows


def test_readme_table_has_a_line_for_each_method():
    rows = [row(10 + i + s, method=m, seed=s) for i, m in enumerate(METHODS) for s in (0, 1)]
    report = {"commit": "abcdef" * 7, "machine": {"cores": 2}, "rows": [dataclasses.asdict(r) for r in rows]}
    block = results_block(report)
    assert "mean over 2 seeds" in block
    for i, method in enumerate(METHODS):
        assert f"| `{method}` | {10.5 + i:.1f} |" in block
    text = "before\n<!-- a:start -->\nold\n<!-- a:end -->\nafter\n"
    new = replace_block(text, "a", block)
    assert new == f"before\n<!-- a:start -->\n{block}\n<!-- a:end -->\nafter\n"
    assert replace_block(new, "a", block) == new


def test_command_names_the_data_folder_by_its_variable(dataset, monkeypatch):
    monkeypatch.setattr("sys.argv", ["d2nwg-init", "demo", "--data", "/mine/images/a.npz"])
    monkeypatch.setenv("D2NWG_DATA", "/mine/images")
    assert results("demo", [dataset], [])["command"] == "d2nwg-init demo --data $D2NWG_DATA/a.npz"
    for value, arguments, named in (
        ("data", ["--data", "data", "--work", "data.d/mydata"], "--data $D2NWG_DATA --work data.d/mydata"),
        ("/mine/", ["--data=/mine", "--out=/mine2/a"], "--data=$D2NWG_DATA --out=/mine2/a"),
    ):
        monkeypatch.setattr("sys.argv", ["d2nwg-init", "demo", *arguments])
        monkeypatch.setenv("D2NWG_DATA", value)
        assert results("demo", [dataset], [])["command"] == f"d2nwg-init demo {named}"
    monkeypatch.setattr("sys.argv", ["d2nwg-init", "demo", "--data", "/mine/images/a.npz"])
    monkeypatch.delenv("D2NWG_DATA")
    assert results("demo", [dataset], [])["command"].endswith("/mine/images/a.npz")
