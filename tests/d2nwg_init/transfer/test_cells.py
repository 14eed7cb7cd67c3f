"""Cells: what is measured, kept, and gone on with."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from d2nwg_init.benchmarks.fine_tuning import FineTuning, train_steps
from d2nwg_init.benchmarks.transfer import run
from d2nwg_init.benchmarks.transfer.benchmark import tied
from d2nwg_init.benchmarks.transfer.cells import Cell, Measured, missing, read_cell, write_cell
from d2nwg_init.benchmarks.transfer.methods import make
from d2nwg_init.benchmarks.transfer.run import run_cell, run_cells
from tests.d2nwg_init.transfer.conftest import new_arena
from tests.zoo_builder.synthetic import striped_dataset, write_npz
from zoo_builder.backbones import predict
from zoo_builder.errors import DataError
from zoo_builder.executors.processes import process_executor

CELL = Cell("stripes", None, 0, "solved", "short", learning_rate=1e-3)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(run, "STEPS", (2, 4, 6))
    monkeypatch.setattr(run, "LONG_EPOCHS", 2)
    monkeypatch.setattr(run, "EVERY", 2)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("d2nwg_init.benchmarks.fine_tuning.FineTuning.batch_size", 16)


def same_measure(a, b):
    assert a.correct.keys() == b.correct.keys()
    assert all((a.correct[k] == b.correct[k]).all() for k in a.correct)
    assert [(s, v) for s, _, v in a.curve] == [(s, v) for s, _, v in b.curve]
    assert {k: v for k, v in a.notes.items() if k != "peak_bytes"} == {
        k: v for k, v in b.notes.items() if k != "peak_bytes"
    }


@pytest.mark.parametrize("dataset", ["stripes", "hf:org/stripes@0123?label=label"])
def test_a_cell_is_read_as_it_was_written(dataset, tmp_path):
    cell = Cell(dataset, 5, 2, "noise_on_nearest", condition="shuffled", sigma=0.3, strength=1.5)
    correct = {"step/0": np.arange(13) % 3 == 0, "epoch/1": np.ones(13, bool)}
    measured = Measured(
        correct, [(0, 0.0, 33.3), (5, 1.25, 50.0)], {"initialise": 2.5}, {"chosen": "noisy_1"}, "c0ffee"
    )
    write_cell(tmp_path, cell, measured)
    read = read_cell(tmp_path, cell)
    same_measure(read, measured)
    assert read.curve == measured.curve
    assert read.seconds == measured.seconds
    assert read.commit == "c0ffee"
    assert read.accuracy("step/0") == pytest.approx(100 * 5 / 13)
    assert missing(tmp_path, [cell, CELL]) == [CELL]


def test_cells_that_differ_have_other_names():
    changes = {
        "dataset": "bands", "shots": 5, "seed": 1, "method": "universal", "training": "long", "condition": "null",
        "sample": 1, "sigma": 0.1, "strength": 0.5, "learning_rate": 3e-4, "bundle": "0", "other": "bands", "data": "1",
    }  # fmt: skip
    names = [CELL.id, *(replace(CELL, **{k: v}).id for k, v in changes.items())]
    assert len(set(names)) == len(names)


def test_points_are_measured_where_they_should_be(subject, small_batches):
    arena = new_arena(subject)
    points = {"step/0", "step/2", "step/4", "step/6", "epoch/1"}
    short = run_cell(arena, CELL)
    assert short.correct.keys() == points  # 60 images are 3 whole batches of 16
    assert [s for s, _, _ in short.curve] == [0, 2, 4, 6]
    assert run_cell(arena, replace(CELL, training="none")).correct.keys() == {"step/0"}
    assert run_cell(arena, replace(CELL, training="rates")).correct.keys() == points - {"step/2"}
    assert run_cell(arena, replace(CELL, training="long")).correct.keys() == points | {"epoch/2"}


def test_an_epoch_is_a_cycle_of_its_own(subject, small_batches):
    arena = new_arena(subject)
    model, recipe = make(arena, CELL).model, FineTuning(learning_rate=CELL.learning_rate)
    list(train_steps(model, arena.training_loader(), recipe, 3))
    images, labels = arena.test
    expected = (predict(model, images).argmax(1) == labels).numpy()
    assert np.array_equal(run_cell(arena, CELL).correct["epoch/1"], expected)


def test_a_curve_agrees_with_the_points_where_it_sees_all_test_images(subject):
    measured = run_cell(new_arena(subject), CELL)
    curve = {step: accuracy for step, _, accuracy in measured.curve}
    for step in (0, 2, 4, 6):
        assert curve[step] == pytest.approx(measured.accuracy(f"step/{step}"), abs=1e-3)
    seconds = [s for _, s, _ in measured.curve]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0


def test_the_same_cell_measures_the_same(subject):
    same_measure(run_cell(new_arena(subject), CELL), run_cell(new_arena(subject), CELL))


@pytest.fixture
def folder_of_data(tmp_path):
    (tmp_path / "data").mkdir()
    for seed, name in enumerate(("kmnist", "dtd_part")):
        write_npz(tmp_path / "data" / f"{name}.npz", striped_dataset(name, seed=seed))
    return tmp_path / "data"


def work_beside(folder, place):
    """A folder with no cells, in which the library and the regressor are those of `folder`."""
    place.mkdir()
    for file in folder.glob("*.*"):
        (place / file.name).symlink_to(file)
    return place


HASHES = {"kmnist": "0" * 64, "dtd_part": "1" * 64}


def all_cells(subject, hashes=HASHES):
    cells = [
        Cell(name, shots, 0, method, condition=condition)
        for name in ("kmnist", "dtd_part")
        for shots in (2, None)
        for method, condition in (("solved", "right"), ("nearest", "right"), ("nearest", "shuffled"))
        if name in hashes
    ]
    return tied(cells, subject, hashes)


def test_a_cell_is_of_the_images_that_it_is_measured_with(subject):
    """Of a shuffled condition those of another dataset too, which is another one where there are others."""
    before = {c.id for c in all_cells(subject)}
    assert not before & {c.id for c in all_cells(subject, dict.fromkeys(HASHES, "2" * 64))}

    def measured_anew(hashes):
        return {(c.dataset, c.condition) for c in all_cells(subject, hashes) if c.id not in before}

    assert measured_anew(HASHES) == set()
    changed = {("kmnist", "shuffled"), ("dtd_part", "right"), ("dtd_part", "shuffled")}
    assert measured_anew(HASHES | {"dtd_part": "2" * 64}) == changed
    assert measured_anew({"kmnist": "0" * 64, "chars74k": "1" * 64, "dtd_part": "1" * 64}) == {("kmnist", "shuffled")}


def test_a_dataset_alone_has_no_shuffled_condition(subject):
    assert {c.condition for c in all_cells(subject, {"kmnist": "0" * 64})} == {"right"}


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(spec, subject, folder, folder_of_data, tmp_path):
    """Nor does it matter whether processes measure it or this one."""
    cells = all_cells(subject)
    whole, cut = (work_beside(folder, tmp_path / name) for name in ("whole", "cut"))
    run_cells(cells, spec, whole, folder_of_data, process_executor(2))
    run_cells(cells[::3], spec, cut, folder_of_data, ThreadPoolExecutor(1))
    stamps = {p.name: p.stat().st_mtime_ns for p in (cut / "cells").iterdir()}
    run_cells(cells, spec, cut, folder_of_data, ThreadPoolExecutor(1))
    assert missing(cut / "cells", cells) == []
    assert all((cut / "cells" / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    for cell in cells:
        same_measure(read_cell(whole / "cells", cell), read_cell(cut / "cells", cell))


def test_what_is_done_is_kept_when_a_later_cell_fails(spec, subject, folder, folder_of_data, tmp_path):
    work = work_beside(folder, tmp_path / "work")
    cells = [Cell("kmnist", None, 0, "solved"), Cell("absent", 2, 0, "solved")]
    with pytest.raises(DataError, match="absent"):
        run_cells(cells, spec, work, folder_of_data, process_executor(1))
    assert missing(work / "cells", cells) == cells[1:]
