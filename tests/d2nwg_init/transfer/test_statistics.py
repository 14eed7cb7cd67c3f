"""Intervals that hold as often as they say, and corrections that keep their level."""

import math

import numpy as np
import pytest

from d2nwg_init.benchmarks.transfer.statistics import (
    LEVEL,
    RESAMPLES,
    Difference,
    _draws,
    holm,
    paired_bootstrap,
    steps_to_target,
    with_verdicts,
)


def draws(rng, seeds, images, gain):
    """Two methods that are right on most of the same images; the first is better by `gain` points in the mean."""
    ease = rng.random((1, images))
    first = ease + rng.normal(0, 0.2, (seeds, images)) < 0.6 + gain / 100
    second = ease + rng.normal(0, 0.2, (seeds, images)) < 0.6
    return first, second


def test_the_difference_is_that_of_the_accuracies():
    first, second = draws(np.random.default_rng(0), 3, 500, 5)
    found = paired_bootstrap(first, second)
    assert found.mean == pytest.approx(100 * (first.mean() - second.mean()), abs=1e-4)
    assert found.low < found.mean < found.high


def test_intervals_miss_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    truth = 5.0  # ease is uniform: a threshold that is 0.05 higher lets 5 % more through
    missed = np.mean([paired_bootstrap(*draws(rng, 3, 300, truth)).low > truth for _ in range(200)])
    assert missed < 3 * LEVEL


def test_equal_methods_are_seldom_called_different():
    rng = np.random.default_rng(2)
    found = [paired_bootstrap(*draws(rng, 3, 300, 0)) for _ in range(200)]
    assert np.mean([d.p_win <= LEVEL for d in found]) < 2 * LEVEL
    assert np.mean([d.p_loss <= LEVEL for d in found]) < 2 * LEVEL


def test_a_gain_in_one_seed_alone_is_less_certain_than_in_all():
    base = np.zeros((3, 400), bool)
    one, all_ = base.copy(), base.copy()
    one[0, :60] = True
    all_[:, :20] = True  # the same mean
    assert paired_bootstrap(one, base).low < paired_bootstrap(all_, base).low


def test_the_same_answers_differ_by_nothing():
    first = np.random.default_rng(3).random((2, 100)) < 0.5
    found = paired_bootstrap(first, first)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert min(found.p_win, found.p_loss) == 1


@pytest.mark.parametrize("counts", [(30, 30, 30), (30, 20)])
def test_a_draw_in_which_both_are_as_good_counts_against_either(counts):
    """In whole numbers: rounding must make no tie a win, and there are many of few images."""
    rng = np.random.default_rng(5)
    first, second = ([rng.random(n) < p for n in counts] for p in (0.6, 0.5))
    found = paired_bootstrap(first, second)
    images = math.lcm(*counts)
    drawn = [_draws(n, 0).astype(int) @ (a.astype(int) - b) * (images // n)
             for n, a, b in zip(counts, first, second, strict=True)]  # fmt: skip
    sums = (np.stack(drawn, axis=1) * _draws(len(counts), 0).astype(int)).sum(1)
    assert (sums == 0).any()
    expected = [(1 + (sign * sums <= 0).sum()) / (1 + RESAMPLES) for sign in (1, -1)]
    assert [found.p_win, found.p_loss] == expected
    assert found.low == pytest.approx(100 * np.quantile(sums / images / len(counts), LEVEL))


def test_seeds_may_have_other_numbers_of_images():
    """Every seed counts alike."""
    first, second = draws(np.random.default_rng(4), 2, 400, 10)
    whole = paired_bootstrap(first, second)
    parts = paired_bootstrap([first[0], first[1][:100]], [second[0], second[1][:100]])
    means = [100 * (a.mean() - b.mean()) for a, b in ((first[0], second[0]), (first[1][:100], second[1][:100]))]
    assert parts.mean == pytest.approx(np.mean(means), abs=1e-4)
    assert parts.high - parts.low > whole.high - whole.low


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="of the same seeds"):
        paired_bootstrap(np.zeros((2, 5), bool), np.zeros((2, 6), bool))


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03], [True, False, False]),  # 0.03 > 0.05 / 2 ends it
        ([0.01, 0.02, 0.03], [True, True, True]),
        ([0.04, 0.9], [False, False]),
        ([], []),
    ],
)
def test_holm_steps_down(p_values, expected):
    assert holm(p_values) == expected


def test_verdicts_are_of_all_datasets_together():
    certain, likely = (Difference(3.0, 1.0, 5.0, p, 1.0) for p in (0.001, 0.03))
    worse = Difference(-3.0, -5.0, -1.0, 1.0, 0.001)
    assert with_verdicts({"a": likely})["a"].verdict == "win"
    found = with_verdicts({"a": certain, "b": likely, "c": worse})
    assert {k: d.verdict for k, d in found.items()} == {"a": "win", "b": "tie", "c": "loss"}


def test_a_target_is_reached_at_the_first_point_that_is_as_high():
    curve = [(0, 0.0, 10.0), (5, 1.0, 50.0), (10, 2.0, 40.0), (15, 3.0, 60.0)]
    assert [steps_to_target(curve, t) for t in (10, 45, 55, 61)] == [0, 5, 15, None]


def test_draws_that_are_kept_take_a_byte_each():
    assert _draws(300, 0).nbytes == 300 * RESAMPLES
