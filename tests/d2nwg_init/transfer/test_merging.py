"""What a run leaves of results that are there."""

from dataclasses import replace

from d2nwg_init.benchmarks.transfer.report import write_report
from tests.d2nwg_init.transfer.test_report import found, reported

__all__ = ["found"]

AGAIN = ("solved", "universal")


def test_a_training_by_another_protocol_does_not_stay_beside_what_is_measured_again(found, tmp_path):
    file = tmp_path / "transfer.json"
    first = reported(found, file=file)
    again = {
        cell: replace(one, correct={"step/0": one.correct["step/0"]}, curve=[])
        for cell, one in found.items()
        if cell.method in AGAIN
    }
    write_report(file, first)
    assert measured_at(reported(again, file=file)) == measured_at(first)  # as it was before training
    write_report(file, {**first, "runs": [{**run, "protocol": 0} for run in first["runs"]]})
    merged = reported(again, file=file)
    assert measured_at(merged) == measured_at(first) | {method: {0} for method in AGAIN}


def measured_at(report):
    rows = [r for r in report["rows"] if r["metric"] == "test_accuracy"]
    return {r["method"]: {o.get("step") for o in rows if o["method"] == r["method"]} for r in rows}
