"""Parts of a zoo become the whole again, bit by bit; what does not belong together is refused."""

import json
import shutil
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch

from tests.zoo_builder.synthetic import random_body, seeded, striped_images, tiny_task
from zoo_builder.backbones import BackboneSpec
from zoo_builder.errors import ZooError
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.merge import MergeReport, merge
from zoo_builder.store import Zoo
from zoo_builder.tasks import ZooRecipe
from zoo_builder.verify import verify

RECIPE = ZooRecipe(plans=(), held_out=("secret", "hidden"), size=32, support=4)
METRICS = {"solved_accuracy": 50.0, "best_accuracy": 61.5, "best_strength": 0.75, "gain": 11.5, "seconds": 2.0}


def new_zoo(path, model="test_resnet", seed=0, **changes):
    body = BackboneSpec(model).create() if model != "test_resnet" else random_body(seed)
    return Zoo.create(path, BackboneSpec(model), body.state_dict(), replace(RECIPE, **changes))


def write(zoo, task, seed=0):
    images, labels = striped_images(4, seed=seed)
    delta = {k: 0.01 * torch.randn(p.shape, generator=seeded(seed)).half() for k, p in random_body().named_parameters()}
    zoo.write(
        task,
        FineTuneResult(
            delta,
            {},
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(labels),
            torch.ones(4),
            METRICS,
            [],
        ),
    )


def filled(path, seeds):
    zoo = new_zoo(path)
    for seed in seeds:
        write(zoo, tiny_task(seed=seed), seed)
    return zoo


def contents(zoo):
    """Every file of entries and rows."""
    return {
        p.relative_to(zoo.path): p.read_bytes() for place in ("entries", "rows") for p in (zoo.path / place).iterdir()
    }


@pytest.fixture
def whole(tmp_path):
    return filled(tmp_path / "whole", range(6))


def test_parts_become_the_whole_byte_by_byte(whole, tmp_path):
    parts = [filled(tmp_path / str(i), seeds) for i, seeds in enumerate(((0, 1), (1, 2, 3), (4, 5)))]
    assert merge(parts[0], parts[1:]) == MergeReport(4, 1, 0, (), ())
    assert contents(parts[0]) == contents(whole)
    assert verify(parts[0]).problems == ()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "0").rglob("*.safetensors")}
    assert merge(parts[0], parts[1:]) == MergeReport(0, 5, 0, (), ())
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_store_that_is_no_folder_receives_too(whole, tmp_path):
    into = new_zoo(f"memory://{tmp_path.name}/into")
    assert merge(into, [whole]).copied == 6
    assert {e.id: e.sha256 for e in into.entries()} == {e.id: e.sha256 for e in whole.entries()}
    assert verify(into).problems == ()


def test_held_out_names_may_be_in_another_order(whole, tmp_path):
    assert merge(new_zoo(tmp_path / "into", held_out=("hidden", "secret")), [whole]).copied == 6


def test_what_a_kill_left_is_completed(whole, tmp_path):
    """At any moment: files without rows, an old row of failure beside a new file, a row whose file is lost."""
    into = filled(tmp_path / "into", (0, 1, 2))
    ids = [tiny_task(seed=s).id for s in range(4)]
    into.row_path(ids[0]).unlink()
    into.write_failure(tiny_task(seed=1), "it broke")
    into.entry_path(ids[2]).unlink()
    into.entry_path(ids[3]).write_bytes(b"half of it")
    assert merge(into, [whole]) == MergeReport(6, 0, 0, (), ())
    assert contents(into) == contents(whole)


def test_failures_give_way_to_entries_and_never_replace_anything(tmp_path):
    into, other = filled(tmp_path / "into", (0,)), filled(tmp_path / "other", (1,))
    tasks = [tiny_task(seed=s) for s in range(4)]
    other.write_failure(tasks[0], "there it broke")
    into.write_failure(tasks[1], "here it broke")
    into.write_failure(tasks[2], "here it broke")
    other.write_failure(tasks[2], "there it broke")
    other.write_failure(tasks[3], "there it broke")
    assert merge(into, [other]) == MergeReport(1, 0, 1, (), ())
    assert {e.id for e in into.entries()} == {tasks[0].id, tasks[1].id}
    assert into.failures() == {tasks[2].id: "here it broke", tasks[3].id: "there it broke"}


def test_of_two_that_differ_the_first_stays_and_it_is_said(tmp_path):
    task = tiny_task()
    zoos = [new_zoo(tmp_path / str(i)) for i in range(3)]
    for seed in (1, 2):
        write(zoos[seed], task, seed)
    assert merge(zoos[0], zoos[1:]) == MergeReport(1, 0, 0, (task.id,), ())
    assert zoos[0].entry(task.id).sha256 == zoos[1].entry(task.id).sha256
    assert verify(zoos[0]).problems == ()


def test_damaged_entries_are_not_copied_and_are_named(whole, tmp_path):
    into, ids = new_zoo(tmp_path / "into"), [e.id for e in whole.entries()]
    path = whole.entry_path(ids[0])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    whole.entry_path(ids[1]).unlink()
    report = merge(into, [whole])
    assert (report.copied, report.damaged) == (4, (ids[0], ids[1]))
    assert [e.id for e in into.entries()] == ids[2:]
    assert verify(into).orphans == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "base_sha256"),
        ({"size": 48}, "size is 48, expected 32"),
        ({"model": "test_convnext"}, "backbone"),
        ({"held_out": ("secret",)}, "holds out"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_copied(whole, tmp_path, changes, words):
    into, odd = new_zoo(tmp_path / "into"), new_zoo(tmp_path / "odd", **changes)
    with pytest.raises(ZooError, match=words):
        merge(into, [whole, odd])
    assert list(into.entries()) == []


def test_deltas_to_a_base_that_was_fitted_otherwise_are_refused(whole, tmp_path):
    into = replace(new_zoo(tmp_path / "into"), batchnorm="absorbed")
    with pytest.raises(ZooError, match="batchnorm is rescaled, expected absorbed"):
        merge(into, [whole])
    assert list(into.entries()) == []


def source(sha256, cluster):
    return {"licence": "CC0", "origin": "made up", "sha256": sha256, "cluster": cluster}


def write_datasets(zoo, datasets):
    (zoo.path / "datasets.json").write_text(json.dumps(datasets))


def test_datasets_are_joined_and_keep_their_company(tmp_path):
    into, other = new_zoo(tmp_path / "into"), new_zoo(tmp_path / "other")
    write_datasets(into, {"a": source("1", 0), "b": source("2", 1)})
    write_datasets(other, {"b": source("2", 0), "c": source("3", 0), "d": source("4", 0), "e": source("5", 1)})
    merge(into, [other])
    found = json.loads((into.path / "datasets.json").read_text())
    assert {name: about["sha256"] for name, about in found.items()} == dict(zip("abcde", "12345", strict=True))
    clusters = {name: about["cluster"] for name, about in found.items()}
    assert (clusters["a"], clusters["b"]) == (0, 1)
    assert clusters["c"] == clusters["d"]
    assert len({clusters[name] for name in "abce"}) == 4
    merge(into, [other])
    assert json.loads((into.path / "datasets.json").read_text()) == found


def test_a_dataset_that_differs_is_refused(whole, tmp_path):
    into = new_zoo(tmp_path / "into")
    write_datasets(into, {"a": source("1", 0)})
    write_datasets(whole, {"a": source("2", 0)})
    with pytest.raises(ZooError, match="dataset 'a'"):
        merge(into, [whole])
    assert list(into.entries()) == []


def test_an_id_that_leads_out_of_the_zoo_is_not_followed(whole, tmp_path):
    into = new_zoo(tmp_path / "deep" / "er" / "into")
    first = sorted((whole.path / "rows").iterdir())[0]
    table = pyarrow.parquet.read_table(first)
    away = table.set_column(table.column_names.index("id"), "id", pyarrow.array(["../../victim"]))
    pyarrow.parquet.write_table(away, first)
    shutil.copy(first, whole.path.parent / "victim.parquet")
    shutil.copy(whole.entry_path(first.stem), whole.path.parent / "victim.safetensors")
    with pytest.raises(ZooError, match=r"'\.\./\.\./victim' is no id of an entry"):
        merge(into, [whole])
    assert not list((tmp_path / "deep").rglob("victim*"))


def test_a_zoo_merged_into_itself_stays(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "before")
    assert merge(whole, [whole]) == MergeReport(0, 6, 0, (), ())
    assert contents(whole) == contents(Zoo.open(tmp_path / "before"))
