"""`bench init`: each ratio is that of the seconds beside it; `bench never-worse`: draws, resuming and the share."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from d2nwg_init import initialize, refine
from d2nwg_init.benchmarks import init, never_worse
from d2nwg_init.benchmarks.never_worse import JUDGED, SIMPLE, draws, rows_of, run_draws
from tests.d2nwg_init.test_peak_memory import told
from tests.zoo_builder.synthetic import striped_dataset, write_npz

ONE_CALL = init._one_call


def one_call_with_little_refining(*given):
    """For the process of its own, which no fixture reaches; refining for long takes no more memory."""
    refine.MOST_STEPS, refine.TRAININGS_OF_FEW = 2, 1
    return ONE_CALL(*given)


def test_ratios_are_those_of_the_seconds_and_memory_that_of_a_first_call(
    bundle_path, bundle, model, loader, monkeypatch
):
    monkeypatch.setattr(init, "EPOCH_IMAGES", 64)
    monkeypatch.setattr(init, "REPEATS", 1)
    monkeypatch.setattr(init, "_one_call", one_call_with_little_refining)
    dataset = striped_dataset("stripes", train=48, test=8)
    initialize(model, loader, generator=bundle, num_candidates=2)  # what this took here must not serve the next call
    rows = init.run_init_benchmark(str(bundle_path), dataset, num_candidates=2, num_support=32)
    seconds = {r.method: r.value for r in rows if r.metric == "seconds"}
    figures = {r.metric: r.value for r in rows if r.metric != "seconds"}
    assert seconds.keys() == {
        "initialize", "reading", "bundle", "embedding", "sampling", "evaluation", "refining", "forward", "epoch",
    }  # fmt: skip
    assert figures["total_over_epoch"] == seconds["initialize"] / seconds["epoch"]
    assert figures["evaluation_over_forward"] == seconds["evaluation"] / seconds["forward"]
    assert ("peak_over_weights" in figures) == ("peak_extra_bytes" in figures)
    if told():
        assert figures["peak_extra_bytes"] > 2**24
    assert {(r.bundle, r.dataset) for r in rows} == {("tiny-random", "stripes")}


def test_as_many_images_are_read_as_are_asked_for_though_the_dataset_has_fewer(bundle_path, monkeypatch):
    monkeypatch.setattr(init, "EPOCH_IMAGES", 64)
    bench = init._Bench(str(bundle_path), striped_dataset("stripes", train=24, test=8), 2, 60, 0)
    assert len(bench.support()) == 60


def test_memory_is_beyond_the_images_that_are_read_though_more_are_asked_for(bundle_path, monkeypatch):
    monkeypatch.setattr(init, "EPOCH_IMAGES", 64)
    monkeypatch.setattr(init, "gained_alone", lambda one: 2**30 if one.func is init._one_call else 0)
    bench = init._Bench(str(bundle_path), striped_dataset("stripes", train=24, test=8), 2, 10**6, 0)
    assert bench.memory()[0] == 2**30 - 64 * bench.images[0][0].nbytes


DATASETS = {"a": "0" * 64, "b": "1" * 64}
BUNDLES = {"x": "2" * 64, "runs/y": "3" * 64}


def test_more_draws_begin_with_the_same():
    few, many = (list(draws(n, DATASETS, BUNDLES)) for n in (20, 60))
    assert many[:20] == few
    assert len({d.id for d in many}) == 60
    assert {d.dataset for d in many} == {"a", "b"}
    assert {d.body for d in many} == {"random", "base"}
    assert {d.shots for d in many} == set(never_worse.SHOTS)


@pytest.mark.parametrize("changed", ["a", "x", "runs/y"])
def test_draws_of_a_changed_dataset_or_bundle_are_others_and_those_of_the_rest_are_kept(changed):
    digest = {changed: "4" * 64}
    kept = [d.id for d in draws(60, DATASETS, BUNDLES)]
    now = list(draws(60, *(given | {k: digest[k] for k in given.keys() & digest} for given in (DATASETS, BUNDLES))))
    assert [d.id in kept for d in now] == [changed not in (d.dataset, d.bundle) for d in now]


def test_draws_are_measured_once_and_kept(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(never_worse, "SHOTS", (4,))
    write_npz(tmp_path / "stripes.npz", striped_dataset("stripes", train=48, test=24))
    monkeypatch.setattr(never_worse, "_bundle", lambda _: bundle)
    todo = list(draws(2, {"stripes": "0" * 64}, {"tiny": "1" * 64}))
    run_draws(todo, tmp_path, tmp_path / "work", ThreadPoolExecutor(1))
    rows = rows_of(todo, tmp_path / "work")
    assert {r.method for r in rows} == {*JUDGED, *SIMPLE}
    assert all(0 <= r.value <= 100 for r in rows if r.unit == "%")
    files = sorted((tmp_path / "work").iterdir())
    assert [f.stem for f in files] == [d.id for d in todo]
    files[0].write_text(files[0].read_text().replace('"own_body": ', '"own_body": 1'))
    kept = files[0].read_text()
    run_draws(todo, tmp_path, tmp_path / "work", ThreadPoolExecutor(1))
    assert files[0].read_text() == kept


def test_the_share_counts_draws_that_are_more_than_a_point_below_the_best(tmp_path):
    todo = list(draws(4, {"a": "0" * 64}, {"x": "1" * 64}))
    for draw, chosen in zip(todo[:3], (80.0, 79.5, 78.5), strict=True):  # the fourth is not measured
        before = dict.fromkeys(SIMPLE, 50.0) | {"base": 80.0, "chosen": chosen, "initialize": 85.0}
        after = dict.fromkeys((*SIMPLE, "chosen"), 90.0) | {"initialize": 85.0}
        clearly = dict.fromkeys((*SIMPLE, "initialize"), False) | {"chosen": chosen < 79, "own_body": True}
        result = {"names": {"chosen": "own_body"}, "step_0": before, "epoch_1": after}
        result |= {"clearly worse, step_0": clearly, "clearly worse, epoch_1": clearly}
        (tmp_path / f"{draw.id}.json").write_text(json.dumps({"found": result}))
    rows = rows_of(todo, tmp_path)
    whole = [r for r in rows if r.condition == "all draws"]
    share, clear, over = (
        {(r.method, r.step): r.value for r in whole if r.metric == metric}
        for metric in ("worse_share", "clearly_worse_share", "over_best")
    )
    assert share == {
        **{(m, 0): 100.0 for m in SIMPLE},
        **{(m, None): 0.0 for m in SIMPLE},
        ("base", 0): 0.0,
        ("chosen", 0): pytest.approx(100 / 3),
        ("chosen", None): 0.0,
        ("initialize", 0): 0.0,
        ("initialize", None): 100.0,
    }
    assert {key: value for key, value in clear.items() if value} == {
        ("own_body", 0): 100.0,  # after an epoch it is not below by a point
        ("chosen", 0): pytest.approx(100 / 3),
    }
    assert over == {
        **{(m, 0): -30.0 for m in SIMPLE},
        **{(m, None): 0.0 for m in SIMPLE},
        ("base", 0): 0.0,
        ("chosen", 0): pytest.approx(-2 / 3),
        ("chosen", None): 0.0,
        ("initialize", 0): 5.0,
        ("initialize", None): -5.0,
    }
    groups = {f"{d.shots or 'all'} of a class" for d in todo[:3]} | {"all draws"}
    summary = [r for r in rows if r.dataset == "all"]
    assert {r.condition for r in summary} == groups
    assert len(summary) == 2 * (len(JUDGED) + len(SIMPLE)) * 3 * len(groups)
    assert len(rows) - len(summary) == 3 * 2 * (len(JUDGED) + len(SIMPLE))
