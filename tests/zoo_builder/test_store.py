"""A zoo on disk: what is written comes back, what is damaged is named."""

import dataclasses
import hashlib
import json

import pyarrow.parquet
import pytest
import torch

from tests.zoo_builder.synthetic import copied, random_body, same, seeded, striped_images, tiny_task
from zoo_builder.backbones import BackboneSpec
from zoo_builder.errors import ZooError
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.store import Zoo
from zoo_builder.tasks import ZooRecipe

RECIPE = ZooRecipe(plans=(), held_out=("secret",), size=32, support=4)
METRICS = {"solved_accuracy": 50.0, "best_accuracy": 61.5, "best_strength": 0.75, "gain": 11.5, "seconds": 2.0}


@pytest.fixture(params=["folder", "memory://"])
def zoo(request, tmp_path):
    path = tmp_path / "zoo" if request.param == "folder" else f"memory://{tmp_path.name}/zoo"
    return new_zoo(path)


def new_zoo(path, **changes):
    return Zoo.create(
        path, BackboneSpec("test_resnet"), random_body().state_dict(), dataclasses.replace(RECIPE, **changes)
    )


def result(seed=0, **changes):
    images, labels = striped_images(4, seed=seed)
    delta = {k: 0.01 * torch.randn(p.shape, generator=seeded(seed)) for k, p in random_body().named_parameters()}
    return FineTuneResult(
        delta={k: v.half() for k, v in delta.items()},
        heads={"stripes/weight": torch.randn(3, 96, generator=seeded(seed)), "stripes/bias": torch.zeros(3)},
        support=torch.from_numpy(images).permute(0, 3, 1, 2),
        support_labels=torch.from_numpy(labels),
        embedding=torch.randn(8, generator=seeded(seed)),
        metrics=METRICS | changes,
        curve=[(1, 0.5), (2, 0.25)],
    )


def test_an_entry_comes_back_as_it_was_written(zoo):
    task, written = tiny_task("finetune", seed=3), result()
    assert task.id not in zoo
    zoo.write(task, written, {"versions": {"torch": "1"}})
    assert task.id in zoo
    entry = Zoo.open(zoo.path).entry(task.id)
    assert entry.task == task
    assert entry.metrics == written.metrics
    assert entry.curve == written.curve
    assert entry.seconds == 2.0
    assert entry.about == {"versions": {"torch": "1"}}
    assert same(entry.delta(), {k: v.float() for k, v in written.delta.items()})
    assert same(entry.heads(), written.heads)
    assert all(
        torch.equal(a, b) for a, b in zip(entry.support(), (written.support, written.support_labels), strict=True)
    )
    assert torch.equal(entry.embedding(), written.embedding)
    assert entry.sha256 == hashlib.sha256(entry.path.read_bytes()).hexdigest()


def test_equal_results_are_equal_files(zoo, tmp_path):
    other = new_zoo(tmp_path / "other")
    for where in (zoo, other):
        where.write(tiny_task(), result())
    assert zoo.entry(tiny_task().id).sha256 == other.entry(tiny_task().id).sha256


def test_base_comes_back_as_it_was_given(zoo):
    assert same(zoo.base(), copied(random_body().state_dict()))


def test_full_weights_are_base_and_delta(tmp_path):
    zoo = new_zoo(tmp_path, keep="full")
    zoo.write(tiny_task(), result())
    entry = zoo.entry(tiny_task().id)
    stored = entry._tensors("weights/")
    base = zoo.base()
    for name, delta in result().delta.items():
        torch.testing.assert_close(stored[f"weights/{name}"], base[name] + delta.float(), rtol=0, atol=0)
        torch.testing.assert_close(entry.delta()[name], delta.float(), rtol=0, atol=1e-6)


def test_entries_are_filtered_and_in_the_order_of_their_ids(zoo):
    tasks = [
        tiny_task(plan="trunk", datasets=("stripes", "bands")),
        tiny_task(datasets=("bands",)),
        tiny_task("finetune", plan="finetune"),
    ]
    for task, gain in zip(tasks, (1.0, 5.0, -2.0), strict=True):
        zoo.write(task, result(gain=gain))
    zoo.write_failure(tiny_task(seed=9), "Traceback: no")
    everything = [e.id for e in zoo.entries()]
    assert everything == sorted(t.id for t in tasks)

    def found(**where):
        return {e.task.plan for e in zoo.entries(**where)}

    assert found(plans=["trunk"]) == {"trunk"}
    assert found(kinds=["episodic"]) == {"trunk", "branch"}
    assert found(datasets=["bands"]) == {"trunk", "branch"}
    assert found(datasets=["bands"], min_gain=2) == {"branch"}
    assert found(plans=["none"]) == set()


def test_failures_are_rows_and_a_success_replaces_them(zoo):
    task = tiny_task()
    zoo.write_failure(task, "it broke")
    assert zoo.failures() == {task.id: "it broke"}
    assert task.id not in zoo
    assert list(zoo.entries()) == []
    zoo.write(task, result())
    assert zoo.failures() == {}
    assert task.id in zoo


def test_a_success_that_is_not_written_to_its_end_is_neither_done_nor_failed(zoo, monkeypatch):
    task = tiny_task()
    zoo.write_failure(task, "it broke")
    with monkeypatch.context() as patch:
        patch.setattr("zoo_builder.store.write_row", full_disk)
        with pytest.raises(OSError, match="full"):
            zoo.write(task, result())
    assert task.id not in zoo
    assert zoo.failures() == {}
    zoo.write(task, result())
    assert [e.id for e in zoo.entries()] == [task.id]


def full_disk(*_, **__):
    raise OSError("The disk is full.")


@pytest.mark.parametrize("task_id", ["../../victim/model", "/tmp/model", "a/b", "a\\b", "", "a\0b"])
def test_an_id_that_is_no_file_name_is_refused(zoo, task_id):
    for path in (zoo.entry_path, zoo.row_path, zoo.entry):
        with pytest.raises(ZooError, match="is no id of an entry"):
            path(task_id)


def test_a_failure_of_an_entry_whose_file_is_there_is_not_done(zoo):
    task = tiny_task()
    zoo.write(task, result())
    zoo.write_failure(task, "it broke")
    assert task.id not in zoo
    assert zoo.failures() == {task.id: "it broke"}
    assert not zoo.entry_path(task.id).exists()


def test_rows_are_parquet_that_anything_reads(tmp_path):
    zoo = new_zoo(tmp_path)
    zoo.write(tiny_task(), result())
    zoo.write_failure(tiny_task(seed=1), "no")
    table = pyarrow.parquet.read_table(tmp_path / "rows")
    assert sorted(table["id"].to_pylist()) == zoo.table()["id"].to_pylist()
    assert sorted(table["error"].to_pylist(), key=str) == [None, "no"]
    assert json.loads(table["task"][0].as_py())["plan"] == "branch"


def test_stack_is_a_mapped_file_of_all_deltas(tmp_path):
    zoo = new_zoo(tmp_path / "zoo")
    for seed in range(3):
        zoo.write(tiny_task(seed=seed), result(seed))
    partly = result(3)
    some = dict(list(partly.delta.items())[:2])
    zoo.write(tiny_task(seed=3), dataclasses.replace(partly, delta=some))
    entries = sorted(zoo.entries(), key=lambda e: e.task.seed)
    stacked = zoo.stack(entries, tmp_path / "stack")
    names, sizes = zip(*((k, p.numel()) for k, p in random_body().named_parameters()), strict=True)
    assert stacked.shape == (4, sum(sizes))
    assert (tmp_path / "stack").stat().st_size == 2 * stacked.numel()
    for row, entry in zip(stacked, entries, strict=True):
        delta = entry.delta()
        for name, part in zip(names, row.split(sizes), strict=True):
            want = delta[name].flatten().half() if name in delta else torch.zeros_like(part)
            assert torch.equal(part, want)


def test_the_same_zoo_is_opened_again_and_another_is_refused(tmp_path):
    zoo = new_zoo(tmp_path)
    zoo.write(tiny_task(), result())
    assert [e.id for e in new_zoo(tmp_path).entries()] == [tiny_task().id]
    for changes, words in (
        ({"size": 48}, "another size"),
        ({"held_out": ()}, "another held_out"),
        ({"keep": "full"}, "keep"),
    ):
        with pytest.raises(ZooError, match=words):
            new_zoo(tmp_path, **changes)
    with pytest.raises(ZooError, match="another base_sha256"):
        Zoo.create(tmp_path, BackboneSpec("test_resnet"), random_body(1).state_dict(), RECIPE)
    with pytest.raises(ZooError, match="another backbone"):
        Zoo.create(tmp_path, BackboneSpec("test_resnet", in_chans=1), random_body().state_dict(), RECIPE)


def test_held_out_datasets_may_be_named_in_another_order(tmp_path):
    zoo = new_zoo(tmp_path, held_out=("secret", "hidden"))
    assert new_zoo(tmp_path, held_out=("hidden", "secret")) == zoo


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 1}', '{"format": 2, "backbone": {"model": 3}}'])
def test_what_is_no_zoo_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "zoo.json").write_text(content)
    with pytest.raises(ZooError, match="zoo"):
        Zoo.open(tmp_path)


def test_a_zoo_from_before_batchnorm_was_told_is_rescaled_and_an_unknown_fit_is_refused(tmp_path):
    about = json.loads((new_zoo(tmp_path).path / "zoo.json").read_text())
    assert about.pop("batchnorm") == "rescaled"
    (tmp_path / "zoo.json").write_text(json.dumps(about))
    assert Zoo.open(tmp_path).batchnorm == "rescaled"
    (tmp_path / "zoo.json").write_text(json.dumps(about | {"batchnorm": "dissolved"}))
    with pytest.raises(ZooError, match="dissolved"):
        Zoo.open(tmp_path)


def test_damage_is_named(tmp_path):
    zoo = new_zoo(tmp_path)
    task = tiny_task()
    zoo.write(task, result())
    path = zoo.entry_path(task.id)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ZooError, match=task.id):
        zoo.entry(task.id).delta()
    zoo.row_path(task.id).write_bytes(b"PAR1")
    with pytest.raises(ZooError, match=task.id):
        list(zoo.entries())
    with pytest.raises(ZooError, match="no entry 'absent'"):
        zoo.entry("absent")


def test_an_entry_without_its_row_is_not_there(tmp_path):
    """What a kill between the two writes leaves."""
    zoo = new_zoo(tmp_path)
    task = tiny_task()
    zoo.write(task, result())
    zoo.row_path(task.id).unlink()
    assert task.id not in zoo
    assert list(zoo.entries()) == []
    zoo.write(task, result())
    assert len(list(zoo.entries())) == 1


def test_damaged_base_is_named(tmp_path):
    zoo = new_zoo(tmp_path)
    (tmp_path / "base.safetensors").write_bytes(b"no")
    with pytest.raises(ZooError, match=r"base\.safetensors cannot be read"):
        zoo.base()
