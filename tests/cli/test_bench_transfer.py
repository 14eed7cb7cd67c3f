"""`bench transfer` from the command line: two small datasets under names of the split, and the tiny zoo."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from d2nwg_init.benchmarks.results import source_commit
from d2nwg_init.benchmarks.transfer import regressor
from d2nwg_init.benchmarks.transfer.subject import zoo_name
from pretrained_generators.bundle import TrainedOn
from tests.cli.conftest import fail, run, succeed
from tests.pretrained_generators.small import save_random_bundle
from tests.zoo_builder.synthetic import striped_dataset, write_npz
from tests.zoo_builder.tiny_zoo import result_of
from zoo_builder.checkpoint import read_tensors, write_atomically
from zoo_builder.store import Zoo


@pytest.fixture(scope="module")
def measured_on(tmp_path_factory):
    data = tmp_path_factory.mktemp("splits")
    for seed, name in enumerate(("kmnist", "dtd_part", "trashnet", "cifar10")):
        write_npz(data / f"{name}.npz", striped_dataset(name, seed=seed))
    return data


@pytest.fixture(autouse=True)
def quick_regressor(monkeypatch):
    monkeypatch.setattr(regressor, "STAGE", replace(regressor.STAGE, steps=2))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def arguments(zoo, data, work, *more, datasets="kmnist,dtd_part"):
    command = ["bench", "transfer", "--data", data, "--zoo", zoo.path, "--plans", "branch", "--universal", "trunk"]
    return [*command, "--work", work / "cells", "--out", work / "transfer.json", "--datasets", datasets, *more]


TWO_SETS = {"development": ("kmnist", "dtd_part"), "held_out": (), "in_distribution": ()}
FEW = ("--defaults", "--methods", "solved,zoo_selected", "--shots", "2,all", "--seeds", "1", "--workers", "1")
FEW += ("--trained", "solved")


def test_a_run_ends_in_results_and_a_page_and_the_next_one_takes_up_what_is_there(whole, measured_on, work):
    printed = succeed(*arguments(whole, measured_on, work, *FEW))
    assert "at step/0, 2 images a class" in " ".join(printed.split())
    assert "zoo_selected" in printed
    report = json.loads((work / "transfer.json").read_text())
    assert [d["name"] for d in report["data"]] == ["kmnist", "dtd_part"]
    assert {r["method"] for r in report["rows"]} == {"solved", "zoo_selected"}
    assert {r["shots"] for r in report["rows"]} == {2, None}
    assert "<svg" in (work / "transfer.html").read_text()
    files = {p: p.stat().st_mtime_ns for p in (work / "cells").glob("*/cells/*")}
    shown = json.loads(succeed(*arguments(whole, measured_on, work, *FEW, "--json")))
    assert shown["rows"] == report["rows"]
    assert {p: p.stat().st_mtime_ns for p in (work / "cells").glob("*/cells/*")} == files
    assert not (work / "heldout_runs.json").exists()


@pytest.mark.usefixtures("no_worker_processes")
def test_every_look_at_the_held_out_sets_is_put_on_record(whole, measured_on, work):
    held_out = arguments(
        whole, measured_on, work, "--split", "held_out", *FEW, "--shots", "2", datasets="trashnet,cifar10"
    )
    for count in (1, 2):
        succeed(*held_out)
        runs = json.loads((work / "heldout_runs.json").read_text())["runs"]
        assert len(runs) == count
    assert runs[0]["datasets"] == ["trashnet", "cifar10"]
    assert runs[0]["methods"] == ["solved", "zoo_selected"]


@pytest.mark.usefixtures("no_worker_processes")
def test_changed_images_are_measured_anew_and_a_run_tells_the_commits_of_its_cells(whole, measured_on, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(measured_on, data)
    more = (
        "--defaults",
        "--methods",
        "solved",
        "--shots",
        "all",
        "--seeds",
        "1",
        "--workers",
        "1",
        "--trained",
        "none",
    )

    def measured(place):
        succeed(*arguments(whole, data, place, *more))
        report = json.loads((place / "transfer.json").read_text())
        return report, {r["dataset"]: r["value"] for r in report["rows"] if r["metric"] == "test_accuracy"}

    report, before = measured(tmp_path)
    assert report["runs"][0]["commits"] == [source_commit() or "unknown"]
    for file in tmp_path.glob("cells/*/cells/kmnist*"):  # of an earlier run
        tensors, metadata = read_tensors(file)
        about = json.loads(metadata["cell"]) | {"commit": "c0ffee"}
        write_atomically(file, tensors, {"cell": json.dumps(about)})
    unlike = replace(striped_dataset("dtd_part", seed=3), y_test=np.roll(striped_dataset(seed=3).y_test, 1))
    write_npz(data / "dtd_part.npz", unlike)
    report, after = measured(tmp_path)
    assert after["kmnist"] == before["kmnist"]
    assert after["dtd_part"] < before["dtd_part"] - 10
    assert sorted(report["runs"][0]["commits"]) == sorted(["c0ffee", source_commit() or "unknown"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--methods", "solvd"), "did you mean 'solved'"),
        (("--methods", "generated_mean"), "needs a --bundle"),
        (("--datasets", "trashnet"), "'trashnet' is not in the split 'development'"),
        (("--datasets", "fashion_mnist"), "has no dataset 'fashion_mnist'"),
        (("--plans", "mix"), "0 entries of ['mix']"),
        (("--universal", "everything"), "no entry of the plan 'everything'"),
        (("--bundle", "test_resnet-64"), "another base"),
        (("--methods", "logistic", "--shots", "all"), "Nothing is measured of logistic"),
    ],
)
def test_what_cannot_be_measured_is_named(whole, measured_on, tmp_path, more, words):
    assert words in fail(*arguments(whole, measured_on, tmp_path, *FEW, *more))
    assert not (tmp_path / "transfer.json").exists()


def test_a_look_at_nothing_is_not_put_on_record(whole, measured_on, tmp_path):
    nothing = ("--split", "held_out", *FEW, "--methods", "scratch", "--shots", "5", "--trained", "none")
    assert "Give other --shots" in fail(*arguments(whole, measured_on, tmp_path, *nothing, datasets="trashnet"))
    assert not (tmp_path / "heldout_runs.json").exists()


def test_seeds_that_are_there_are_not_replaced_by_fewer(whole, measured_on, tmp_path):
    row = {"bundle": zoo_name(whole), "split": "development", "dataset": "kmnist", "method": "solved", "shots": 2}
    rows = [{**row, "seed": seed} for seed in range(3)]
    (tmp_path / "transfer.json").write_text(json.dumps({"runs": [], "comparisons": [], "rows": rows}))
    before = (tmp_path / "transfer.json").read_text()
    assert "Give as many --seeds" in fail(*arguments(whole, measured_on, tmp_path, *FEW, "--seeds", "2"))
    assert (tmp_path / "transfer.json").read_text() == before
    assert not list(tmp_path.glob("cells/*/cells/*"))


def test_neither_a_zoo_nor_a_bundle_is_nothing_to_measure(measured_on, tmp_path):
    assert "give a --zoo" in fail("bench", "transfer", "--data", measured_on, "--work", tmp_path)


def test_a_zoo_that_was_trained_on_a_dataset_of_the_splits_is_refused(whole, zoo, measured_on, tmp_path):
    entry = next(zoo.entries(plans=["branch"]))
    Zoo.open(zoo.path).write(replace(entry.task, datasets=("CIFAR-10",)), result_of(entry), entry.about)
    assert "trained on ['CIFAR-10']" in fail(*arguments(zoo, measured_on, tmp_path, *FEW))


def test_a_bundle_that_was_trained_on_a_dataset_of_the_splits_is_refused(measured_on, tmp_path):
    save_random_bundle(tmp_path / "bundle", trained_on=(TrainedOn("CIFAR-10", 9), TrainedOn("stripes", 9)))
    command = ("bench", "transfer", "--data", measured_on, "--bundle", tmp_path / "bundle", "--work", tmp_path / "work")
    message = fail(*command, "--datasets", "kmnist,dtd_part", "--out", tmp_path / "transfer.json", "--defaults")
    assert "trained on ['CIFAR-10']" in message


def test_other_shots_are_refused(whole, measured_on, tmp_path):
    result = run(*arguments(whole, measured_on, tmp_path, "--shots", "0,many"))
    assert result.exit_code == 2
    assert "or 'all', by commas" in " ".join(result.output.split())


@pytest.mark.usefixtures("no_worker_processes")
def test_without_training_only_step_0_is_measured_and_no_rate_is_chosen(whole, measured_on, tmp_path, monkeypatch):
    monkeypatch.setattr("d2nwg_init.benchmarks.transfer.splits.SPLITS", TWO_SETS)
    monkeypatch.setattr("d2nwg_init.benchmarks.transfer.benchmark.SPLITS", TWO_SETS)
    more = ("--methods", "solved,universal", "--shots", "all", "--seeds", "1", "--workers", "1")
    succeed(*arguments(whole, measured_on, tmp_path, *more, "--trained", "none"))
    report = json.loads((tmp_path / "transfer.json").read_text())
    assert {r["step"] for r in report["rows"] if r["metric"] == "test_accuracy"} == {0}
    chosen = json.loads((tmp_path / "transfer_choices.json").read_text())
    name = report["rows"][0]["bundle"]
    assert chosen["choices"][name]["methods"]["universal"]["learning_rate"] is None
    assert chosen["choices"][name]["methods"]["universal"]["strength"] is not None
    assert chosen["runs"][name]["trained"] == []
