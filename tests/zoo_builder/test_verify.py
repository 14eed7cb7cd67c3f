"""A sound zoo passes to the last image; whatever is damaged is named, and the rest is checked all the same."""

import shutil
from dataclasses import replace

import pytest
import torch

from tests.zoo_builder.synthetic import seeded, striped_dataset, tiny_task, write_npz
from tests.zoo_builder.tiny_zoo import ENTRIES, RECIPE, build_zoo, result_of, rewrite
from zoo_builder.rescore import spread_over_plans
from zoo_builder.verify import verify


def first(zoo, plan="branch"):
    return next(zoo.entries(plans=[plan]))


def test_a_sound_zoo_scores_again_what_is_on_record(whole, data):
    threads = torch.get_num_threads()
    report = verify(whole, data, sample=100)
    assert torch.get_num_threads() == threads
    assert report.problems == report.orphans == ()
    assert (report.checked, report.failures) == (ENTRIES, 0)
    assert {r.id for r in report.re_evaluated} == {e.id for e in whole.entries()}
    assert [r.off for r in report.re_evaluated] == [0] * ENTRIES
    for r in report.re_evaluated:
        metrics = whole.entry(r.id).metrics
        assert (r.recorded_base, r.recorded_best) == (metrics["solved_accuracy"], metrics["best_accuracy"])


def test_full_weights_are_sound_too(data, tmp_path):
    zoo = build_zoo(data, tmp_path, replace(RECIPE, plans=RECIPE.plans[:1], keep="full"))
    report = verify(zoo, data)
    assert report.problems == ()
    assert [r.off for r in report.re_evaluated] == [0]


def test_without_data_nothing_is_scored(whole):
    report = verify(whole)
    assert report.problems == report.re_evaluated == ()


def test_the_sample_is_spread_over_plans_and_of_its_seed(whole):
    entries = list(whole.entries())
    assert {e.task.plan for e in spread_over_plans(entries, 4, 0)} == {"trunk", "branch", "finetune", "mix"}
    draws = {tuple(e.id for e in spread_over_plans(entries, 5, seed)) for seed in range(8)}
    assert len(draws) > 1
    assert spread_over_plans(entries, 5, 3) == spread_over_plans(entries, 5, 3)
    assert len(spread_over_plans(entries, 100, 0)) == ENTRIES
    assert spread_over_plans(entries, 0, 0) == []


def flip_a_bit(entry):
    contents = bytearray(entry.path.read_bytes())
    contents[-1] ^= 1
    entry.path.write_bytes(contents)


def cut(entry):
    entry.path.write_bytes(entry.path.read_bytes()[:1000])


def lose_file(entry):
    entry.path.unlink()


def spoil_row(entry):
    entry.zoo.row_path(entry.id).write_bytes(b"PAR1")


def take_the_row_of_another(entry):
    shutil.copy(entry.zoo.row_path(first(entry.zoo, "trunk").id), entry.zoo.row_path(entry.id))


def not_finite(entry):
    delta = result_of(entry).delta
    next(iter(delta.values())).view(-1)[0] = float("nan")
    rewrite(entry, delta=delta)


def other_shape(entry):
    delta = result_of(entry).delta
    name = next(iter(delta))
    rewrite(entry, delta=delta | {name: delta[name].flatten()[1:]})


def no_such_parameter(entry):
    rewrite(entry, delta=result_of(entry).delta | {"made.up": torch.zeros(2)})


def lacks_a_parameter(entry):
    delta = result_of(entry).delta
    del delta[max(delta)]
    rewrite(entry, delta=delta)


DAMAGE = {
    flip_a_bit: "SHA-256",
    cut: "SHA-256",
    lose_file: "its file is gone",
    spoil_row: "not a readable row",
    take_the_row_of_another: "expected itself alone",
    not_finite: "is not finite",
    other_shape: "in the base",
    no_such_parameter: "made.up is [2], and not in the base",
    lacks_a_parameter: "is missing",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_damage_is_one_problem_that_names_the_entry(zoo, damage):
    entry = first(zoo)
    damage(entry)
    report = verify(zoo)
    (problem,) = report.problems
    assert entry.id in problem
    assert DAMAGE[damage] in problem
    assert report.checked == ENTRIES


def test_all_damage_is_found_and_only_the_sound_are_scored(zoo, data):
    for damage, plan in ((flip_a_bit, "branch"), (lose_file, "trunk"), (spoil_row, "mix")):
        damage(first(zoo, plan))
    report = verify(zoo, data, sample=100)
    assert len(report.problems) == 3
    assert len(report.re_evaluated) == ENTRIES - 3


@pytest.mark.parametrize("name", ["secret", "hf:org/Secret@0a1b"])
def test_what_was_trained_on_a_held_out_dataset_is_a_problem(zoo, name):
    task = tiny_task(datasets=("stripes",), related=(name,))
    zoo.write(task, result_of(first(zoo)))
    assert verify(zoo).problems == (
        f"{task.id}: it was trained on {name}, which the zoo holds out. Remove its row and build again.",
    )


def test_a_file_without_a_row_is_an_orphan_and_no_problem(zoo):
    entry = first(zoo)
    zoo.row_path(entry.id).unlink()
    report = verify(zoo)
    assert (report.problems, report.orphans, report.checked) == ((), (entry.id,), ENTRIES - 1)


def test_failed_tasks_are_counted_and_no_problem(zoo):
    zoo.write_failure(tiny_task(), "it broke")
    report = verify(zoo)
    assert (report.problems, report.failures, report.checked) == ((), 1, ENTRIES)


def test_what_failed_and_has_a_file_is_a_problem(zoo):
    zoo.write_failure(tiny_task(), "it broke")
    zoo.entry_path(tiny_task().id).write_bytes(b"")
    assert "failed, and has a file all the same" in verify(zoo).problems[0]


@pytest.mark.parametrize("contents", [None, b"no", "flipped"])
def test_a_damaged_base_is_a_problem_and_ends_the_scoring(zoo, data, contents):
    path = zoo.path / "base.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if contents is not None:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if contents == "flipped" else contents)
    report = verify(zoo, data)
    assert len(report.problems) == 1
    assert "base.safetensors" in report.problems[0]
    assert report.re_evaluated == ()
    assert report.checked == ENTRIES


@pytest.mark.parametrize("key", ["solved_accuracy", "best_accuracy"])
def test_a_wrong_score_is_found_within_the_tolerance(zoo, data, key):
    entry = first(zoo)
    rewrite(entry, metrics=entry.metrics | {key: entry.metrics[key] + 5})
    (problem,) = verify(zoo, data, sample=100).problems
    assert problem == f"{entry.id}: its accuracy is 5.00 points off what is on record."
    assert verify(zoo, data, sample=100, tolerance=5.1).problems == ()


def test_tensors_that_do_not_do_what_is_on_record_are_found(zoo, data):
    entry = first(zoo)
    noise = {k: torch.randn(v.shape, generator=seeded(0)).half() for k, v in entry.delta().items()}
    rewrite(entry, delta=noise, metrics=entry.metrics | {"best_strength": 1.0})
    (problem,) = verify(zoo, data, sample=100).problems
    assert entry.id in problem


def test_a_dataset_that_changed_or_is_gone_is_a_problem_of_its_entries_alone(whole, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    write_npz(tmp_path / "data" / "bands.npz", striped_dataset("bands", seed=7))
    for words in ("'bands' has changed", "No dataset 'bands'"):
        report = verify(whole, tmp_path / "data", sample=100)
        touched = {e.id for e in whole.entries(datasets=["bands"])}
        assert len(report.problems) == len(touched) == ENTRIES - 3
        assert all(words in p for p in report.problems)
        assert {r.id for r in report.re_evaluated} == {e.id for e in whole.entries()} - touched
        assert all(r.off == 0 for r in report.re_evaluated)
        (tmp_path / "data" / "bands.npz").unlink(missing_ok=True)
