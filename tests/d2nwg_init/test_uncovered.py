"""`bench uncovered`: measured once and kept, each method at its best rate."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from safetensors.torch import save_file

from d2nwg_init.benchmarks import uncovered
from d2nwg_init.benchmarks.uncovered import METHODS, RATES, cells, rows_of, run_cells
from tests.d2nwg_init.test_bench_init import striped_dataset, write_npz
from zoo_builder.errors import ModelError


def test_every_method_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(uncovered, "RATES", (1e-3,))
    monkeypatch.setattr(uncovered.FineTuning, "batch_size", 4)
    write_npz(tmp_path / "stripes.npz", striped_dataset("stripes", train=48, test=24))
    model = timm.create_model("test_resnet", num_classes=0)
    torch.nn.init.normal_(model.bn1.running_mean)  # else it would count as one that was never trained
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    todo = cells("test_resnet", tmp_path / "weights.safetensors", 32, {"stripes": "0" * 64}, 1)
    run_cells(todo, tmp_path, tmp_path / "work", ThreadPoolExecutor(1))
    rows = rows_of(todo, tmp_path / "work")
    assert {(r.method, r.step) for r in rows if r.metric == "test_accuracy"} == {
        (m, s) for m in METHODS for s in (0, 10, 30, 100)
    }
    assert {r.method for r in rows if r.metric == "seconds"} == {"solved", "initialize"}
    before = [f.stat().st_mtime_ns for f in sorted((tmp_path / "work").iterdir())]
    run_cells(todo, tmp_path, tmp_path / "work", ThreadPoolExecutor(1))
    assert [f.stat().st_mtime_ns for f in sorted((tmp_path / "work").iterdir())] == before


def test_other_weights_are_measured_anew_and_a_file_that_is_not_there_is_named(tmp_path):
    file = tmp_path / "weights"
    ids = []
    for content in ("one", "other"):
        file.write_text(content)
        ids.append({c.id for c in cells("m", file, 64, {"a": "0" * 64}, 1)})
    assert not ids[0] & ids[1]
    with pytest.raises(ModelError, match="absent"):
        cells("m", tmp_path / "absent", 64, {"a": "0" * 64}, 1)


def test_another_dataset_of_the_name_is_measured_anew(tmp_path):
    (tmp_path / "weights").touch()
    first, other = ({c.id for c in cells("m", tmp_path / "weights", 64, {"a": d * 64}, 1)} for d in "01")
    assert not first & other


def test_each_method_has_the_rate_that_is_best_in_the_mean_over_datasets_and_late_steps(tmp_path):
    (tmp_path / "weights").touch()
    todo = cells("m", tmp_path / "weights", 64, {"a": "0" * 64, "b": "1" * 64}, 1)
    for cell in todo:
        best = RATES[METHODS.index(cell.method)]
        # At step 0 another is ahead, and on one of the two sets too.
        accuracy = {
            str(r): {"0": 99.0 - (r == best), "10": 1.0, "30": 50.0 + 9 * (r == best), "100": 60.0} for r in RATES
        }
        if cell.dataset == "b":
            accuracy[str(best)]["30"] -= 10
        found = {"accuracy": accuracy, "seconds": 1.0, "chosen": None if cell.method == "pretrained" else "own_body"}
        (tmp_path / f"{cell.id}.json").write_text(json.dumps({"found": found}))
    rows = rows_of(todo, tmp_path)
    for method, rate in zip(METHODS, RATES, strict=True):
        assert {r.condition.split(", chosen")[0] for r in rows if r.method == method} == {
            f"m, 64 pixels, learning rate {rate}"
        }
        values = {(r.dataset, r.step): r.value for r in rows if r.method == method and r.metric == "test_accuracy"}
        assert (values["a", 30], values["b", 30], values["a", 0]) == (59.0, 49.0, 98.0)
