"""Which cells there are, and what is chosen of what was measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d2nwg_init.benchmarks.transfer.benchmark import Request
from d2nwg_init.benchmarks.transfer.cells import Cell, Measured
from d2nwg_init.benchmarks.transfer.methods import METHODS, PENALTIES, SIGMAS, STRENGTHS
from d2nwg_init.benchmarks.transfer.plan import (
    CHOOSING_SEED,
    RATES,
    Choice,
    Choices,
    choose_rates,
    choose_strengths,
    chosen_methods,
    plan_cells,
    rate_cells,
    read_choices,
    strength_cells,
    write_choices,
)
from d2nwg_init.benchmarks.transfer.subject import SubjectSpec
from zoo_builder.errors import RecipeError

DATASETS = ("kmnist", "dtd_part")
ALL = chosen_methods((), True, True)


def measured(**accuracies):
    """Out of 100 test images so many are right, at step_0 and the like."""
    return Measured({at.replace("_", "/"): np.arange(100) < value for at, value in accuracies.items()})


def plan(methods=ALL, shots=(5, None), seeds=(0, 1, 2), choices=None):
    return plan_cells(methods, DATASETS, shots, range(len(seeds)), choices or Choices())


def test_every_method_is_planned_with_its_variants():
    cells = plan()
    assert {c.method for c in cells} == METHODS.keys()
    assert {c.sigma for c in cells if c.method == "noise_on_nearest"} == set(SIGMAS)
    assert {c.sample for c in cells if c.method == "generated_mean"} == {0, 1}
    assert {c.condition for c in cells if c.method == "generated_mean"} == {"right", "shuffled", "null"}
    assert len({c.id for c in cells}) == len(cells)


def test_only_step_0_is_measured_with_few_images_and_wrong_conditions():
    assert {c.training for c in plan() if c.shots == 5 or c.condition != "right"} == {"none"}
    long = {c.method for c in plan() if c.training == "long"}
    assert long == {"scratch", "pretrained", "solved", "initialize"}


def test_rows_that_are_not_to_be_trained_are_measured_at_step_0_alone():
    spec = SubjectSpec("zoo", None, (), "")
    request = Request(spec, "development", Path(), ("solved", "universal"), (), (None,), 1, True, ("solved",))
    cells = plan(request.rows())
    assert {c.method for c in cells} == {"solved", "universal"}
    assert {c.method for c in cells if c.training != "none"} == {"solved"}
    assert {c.method for c in rate_cells(request.rows(), DATASETS, Choices())} == {"solved"}
    timed = replace(request, methods=("solved", "sgd_equal_time"), trained=()).rows()
    assert {c.method for c in rate_cells(timed, DATASETS, Choices())} == {"sgd_equal_time"}  # its step 0 is trained
    cells = plan(timed, choices=Choices({"solved": Choice(1e-3), "sgd_equal_time": Choice(3e-3)}))
    assert {(c.method, c.training, c.learning_rate) for c in cells} == {
        ("solved", "none", None), ("sgd_equal_time", "none", 3e-3),
    }  # fmt: skip
    with pytest.raises(RecipeError, match="did you mean 'solved'"):
        replace(request, trained=("solvd",)).rows()


def test_the_oracle_is_asked_once():
    assert {c.seed for c in plan() if c.method == "oracle"} == {0}


def test_what_a_subject_lacks_is_not_planned():
    rivals = chosen_methods((), True, False)
    assert not [name for name in rivals if name.startswith("generated")]
    assert chosen_methods((), False, False).keys() == {n for n, m in METHODS.items() if not m.needs}
    with pytest.raises(RecipeError, match="needs a --bundle"):
        chosen_methods(("generated_mean",), True, False)
    with pytest.raises(RecipeError, match="did you mean 'nearest'"):
        chosen_methods(("neerest",), True, True)


def test_choices_reach_the_cells():
    choices = Choices({"universal": Choice(3e-3, 0.5, {"5": 1.5}), "solved": Choice(3e-4)})
    cells = [c for c in plan(choices=choices) if c.method in ("universal", "solved")]
    found = {(c.method, c.shots, c.strength, c.learning_rate) for c in cells}
    assert found == {
        ("universal", None, 0.5, 3e-3),
        ("universal", 5, 1.5, None),
        ("solved", None, None, 3e-4),
        ("solved", 5, None, None),
    }


def test_choosing_uses_a_seed_that_is_not_reported():
    cells = strength_cells(ALL, DATASETS, (1, None)) + rate_cells(ALL, DATASETS, Choices())
    assert {c.seed for c in cells} == {CHOOSING_SEED}
    rates = [c for c in cells if c.learning_rate is not None]
    assert {(c.method, c.learning_rate) for c in rates} == {
        (n, r) for n, m in METHODS.items() if m.trained for r in RATES
    }
    assert {c.method for c in rates if c.training == "none"} == {"sgd_equal_time"}
    assert {c.training for c in rates} == {"none", "rates"}
    for method in ("universal", "noise_on_nearest"):
        assert {c.strength for c in cells if c.method == method and c.training == "none"} == set(STRENGTHS)
    assert {c.strength for c in cells if c.method == "logistic"} == set(PENALTIES)


def test_the_best_strength_in_the_mean_over_datasets_is_chosen():
    found = {}
    for shots, best in ((None, 0.5), (5, 1.5)):
        for strength in STRENGTHS:
            for dataset, bonus in zip(DATASETS, (20, 0), strict=True):
                value = 50 + bonus + 10 * (strength == best) - 5 * (dataset == "dtd_part" and strength == 1.0)
                found[Cell(dataset, shots, 7, "universal", strength=strength)] = measured(step_0=value)
    choice = choose_strengths(found).of("universal")
    assert (choice.strength, choice.few_shot_strength) == (0.5, {"5": 1.5})


def test_the_best_head_is_chosen_for_each_number_of_shots():
    found = {}
    for shots, values in ((1, (40, 50, 45)), (5, (60, 50, 55))):
        for method, value in zip(("solved", "nearest_class_mean", "logistic"), values, strict=True):
            strength = 0.1 if method == "logistic" else None
            found[Cell("kmnist", shots, 7, method, strength=strength)] = measured(step_0=value)
    assert choose_strengths(found).closed_form == {"1": "nearest_class_mean", "5": "solved"}


def test_a_rate_is_chosen_by_steps_30_and_100_and_the_epoch():
    found = {}
    for rate, values in zip(RATES, ((60, 70, 60), (70, 69, 70), (80, 60, 50)), strict=False):
        at = dict(zip(("step_30", "step_100", "epoch_1"), values, strict=True))
        found[Cell("kmnist", None, 7, "solved", "rates", learning_rate=rate)] = measured(step_0=99, **at)
    before = Choices({"solved": Choice(strength=0.5)})
    assert choose_rates(before, found).of("solved") == Choice(RATES[1], 0.5)


def test_a_rate_that_a_start_is_made_with_is_chosen_by_the_start():
    found = {
        Cell("kmnist", None, 7, "sgd_equal_time", learning_rate=rate): measured(step_0=value)
        for rate, value in zip(RATES, (60, 80, 70, 10), strict=True)
    }
    assert choose_rates(Choices(), found).of("sgd_equal_time").learning_rate == RATES[1]


def test_what_is_chosen_for_other_numbers_of_shots_joins(tmp_path):
    file = tmp_path / "choices.json"
    write_choices(
        file, "one", "one-1", Choices({"universal": Choice(1e-3, 0.5)}), ["universal"], [None], ["universal"], {}
    )
    few = Choices(
        {"universal": Choice(None, None, {"1": 1.5}), "nearest": Choice(None, None, {"1": 1.0})}, {"1": "logistic"}
    )
    write_choices(file, "one", "one-1", few, ["universal", "nearest"], [1], (), {})
    both = Choices(
        {"universal": Choice(1e-3, 0.5, {"1": 1.5}), "nearest": Choice(None, None, {"1": 1.0})}, {"1": "logistic"}
    )

    def lacking(methods, shots, trained=(), of="one-1"):
        return read_choices(file, "one", of, methods, shots, trained)

    assert lacking(["universal"], [1, None], ["universal"]) == (both, [])
    assert lacking(["universal", "nearest"], [1]) == (both, [])
    assert lacking(["universal", "nearest"], [1, None]) == (both, ["nearest"])
    write_choices(file, "one", "one-1", Choices({"nearest": Choice(None, 2.0)}), ["nearest"], [None], (), {})
    assert lacking(["universal", "nearest"], [1, None], ["universal", "nearest"])[1] == ["nearest"]
    assert lacking([], [])[0].of("nearest") == Choice(None, 2.0, {"1": 1.0})
    assert lacking([], [])[0].of("universal") == both.of("universal")
    write_choices(file, "one", "one-1", Choices({"universal": Choice(None, 1.0)}), ["universal"], [None], (), {})
    assert lacking(["universal"], [None], ["universal"])[1] == ["universal"]  # its rate was of another strength
    write_choices(file, "one", "one-2", few, ["universal"], [1], (), {})  # of another zoo, which replaces all
    assert lacking(["universal"], [1], of="one-2") == (few, [])
    assert lacking(["universal"], [None], of="one-2") == (few, ["universal"])


def test_heads_that_compete_are_chosen_together(tmp_path):
    file = tmp_path / "choices.json"
    both = Choices({"universal": Choice(None, None, {"1": 1.0})}, {"1": "solved"})
    write_choices(file, "one", "one-1", both, ["solved", "universal"], [1], (), {})
    names = ["universal", "solved", "logistic"]
    assert read_choices(file, "one", "one-1", names, [1])[1] == ["solved", "logistic"]
    assert read_choices(file, "one", "one-1", ["solved"], [1])[1] == []


def test_a_strength_that_was_not_chosen_yet_is_lacking(tmp_path):
    """As of a row that had none when its choices were written."""
    file = tmp_path / "choices.json"
    names = ["nearest", "noise_on_nearest"]
    write_choices(file, "one", "one-1", Choices({"nearest": Choice(None, 0.5)}), names, [None], (), {})
    assert read_choices(file, "one", "one-1", names, [None])[1] == ["noise_on_nearest"]


def test_choices_are_read_as_they_were_written_beside_those_of_others(tmp_path):
    file = tmp_path / "choices.json"
    one, two = (Choices({"universal": Choice(1e-3, s, {"1": s})}, {"1": "logistic"}) for s in (0.5, 1.5))
    write_choices(file, "one", "one-1", one, ["universal"], [1, None], ["universal"], {})
    write_choices(file, "two", "two-1", two, ["universal"], [1, None], ["universal"], {})
    for name, of, found in (("one", "one-1", one), ("two", "two-1", two)):
        assert read_choices(file, name, of, ["universal"], [1, None], ["universal"]) == (found, [])
    nothing = (Choices(), ["universal"])
    assert read_choices(file, "three", "three-1", ["universal"], [1]) == nothing
    assert read_choices(file, "one", "one-2", ["universal"], [1]) == nothing  # another zoo
    assert read_choices(file, "one", "one-1", ["nearest", "universal"], [None]) == (one, ["nearest"])
    assert read_choices(file, "one", "one-1", ["universal"], [5]) == (one, ["universal"])
    file.write_text('{"choices": {}}')
    with pytest.raises(RecipeError, match="choices"):
        read_choices(file, "one", "one-1", (), ())
