"""What is measured is kept, whatever becomes of the rest."""

import json
import os
from dataclasses import dataclass

import pytest

from d2nwg_init.benchmarks.kept import commits, kept, measure_missing
from d2nwg_init.benchmarks.results import source_commit
from zoo_builder.errors import D2NWGError
from zoo_builder.executors.processes import process_executor


@dataclass(frozen=True)
class Piece:
    id: str


def measure(piece):
    if piece.id == "fatal":
        os._exit(1)
    return {"length": len(piece.id)}


def test_a_worker_that_dies_is_an_error_with_advice_and_what_was_done_is_kept(tmp_path):
    done, fatal, later = map(Piece, ("done", "fatal", "later"))
    measure_missing([done], measure, tmp_path, process_executor(1))
    stamp = (tmp_path / "done.json").stat().st_mtime_ns
    with pytest.raises(D2NWGError, match="fewer --workers"):
        measure_missing([done, fatal], measure, tmp_path, process_executor(1))
    assert kept(tmp_path, fatal) is None
    measure_missing([done, later], measure, tmp_path, process_executor(1))
    assert [kept(tmp_path, piece) for piece in (done, later)] == [{"length": 4}, {"length": 5}]
    assert (tmp_path / "done.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("text", ['{"found": {"le', "[]", "{}", '{"found": 1}'])
def test_a_damaged_file_is_named(text, tmp_path):
    (tmp_path / "cut.json").write_text(text)
    for read in (lambda: kept(tmp_path, Piece("cut")), lambda: commits(tmp_path, [Piece("cut")])):
        with pytest.raises(D2NWGError, match=r"cut\.json does not hold results.*Remove it: it is measured anew"):
            read()


def test_what_is_kept_tells_the_commits_that_measured_it(tmp_path):
    now, before, unfinished = map(Piece, ("now", "before", "unfinished"))
    measure_missing([now], measure, tmp_path, process_executor(1))
    assert commits(tmp_path, [now, unfinished]) == [source_commit() or "unknown"]
    (tmp_path / "before.json").write_text(json.dumps({"piece": {"id": "before"}, "found": {}}))
    assert commits(tmp_path, [now, before]) == sorted([source_commit() or "unknown", "unknown"])
