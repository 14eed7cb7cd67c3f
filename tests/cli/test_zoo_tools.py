"""The zoo commands on a small zoo of real entries."""

import inspect
import json
import shutil

import pytest
from safetensors.torch import load_file

from d2nwg_init.cli import zoo_tools
from tests.cli.conftest import fail, succeed
from tests.zoo_builder.synthetic import tiny_task
from tests.zoo_builder.tiny_zoo import ENTRIES
from zoo_builder.rescore import TOLERANCE
from zoo_builder.store import Zoo


def test_verify_says_what_it_checked(whole, data):
    assert "0 of them scored again" in succeed("zoo", "verify", whole.path)
    text = succeed("zoo", "verify", whole.path, "--data", data, "--sample", 3)
    assert "Solved accuracy" in text
    assert f"is sound: {ENTRIES} entries, 3 of them scored again" in text
    assert inspect.signature(zoo_tools.verify).parameters["tolerance"].default == TOLERANCE


def test_verify_fails_on_damage_and_forgives_orphans(zoo):
    first, second = list(zoo.entries())[:2]
    zoo.row_path(first.id).unlink()
    assert first.id in succeed("zoo", "verify", zoo.path)
    second.path.write_bytes(b"")
    message = fail("zoo", "verify", zoo.path)
    assert f"1 problems in {ENTRIES - 1} entries" in message
    assert second.id in message


def test_verify_names_a_data_folder_that_is_not_there_once(whole, tmp_path):
    message = fail("zoo", "verify", whole.path, "--data", tmp_path / "nowhere")
    assert message.startswith("Error (DataError): No data folder")
    assert message.count("nowhere") == 1


def test_merge_completes_a_zoo(whole, zoo):
    for entry in list(zoo.entries())[:3]:
        zoo.row_path(entry.id).unlink()
    assert "3 entries copied" in succeed("zoo", "merge", zoo.path, whole.path)
    assert zoo.table().equals(whole.table())


def test_merge_fails_on_damaged_entries_and_copies_the_rest(whole, zoo, tmp_path):
    shutil.copytree(whole.path, tmp_path / "into")
    shutil.rmtree(tmp_path / "into" / "rows")
    bad = next(zoo.entries())
    bad.path.write_bytes(b"")
    assert bad.id in fail("zoo", "merge", tmp_path / "into", zoo.path)
    assert len(list(Zoo.open(tmp_path / "into").entries())) == ENTRIES - 1


def test_export_of_an_entry_and_of_the_index(whole, tmp_path):
    entry = next(whole.entries(plans=["finetune"]))
    text = succeed("zoo", "export", whole.path, "--entry", entry.id, "--out", tmp_path / "a.safetensors")
    assert "head of 3 classes" in text
    assert load_file(tmp_path / "a.safetensors")["fc.weight"].shape[0] == 3
    assert f"{ENTRIES} rows" in succeed("zoo", "export", whole.path, "--out", tmp_path / "index.csv")
    message = fail("zoo", "export", whole.path, "--entry", entry.id, "--out", tmp_path / "a.bin")
    assert "a.safetensors" in message
    assert not (tmp_path / "a.bin").exists()
    assert "index.txt" in fail("zoo", "export", whole.path, "--out", tmp_path / "index.txt")


def test_show_tells_all_of_an_entry(whole):
    entry = next(whole.entries(plans=["branch"]))
    text = succeed("zoo", "show", whole.path, entry.id)
    for words in ("branch", "gain", "licence", "bands.npz", "delta", "float16", "uint8", "loss at step 2"):
        assert words in text


def test_show_of_what_is_not_there_or_failed(zoo):
    task = tiny_task(seed=5)
    zoo.write_failure(task, "it broke [here]")
    assert "it broke [here]" in fail("zoo", "show", zoo.path, task.id)
    assert "no entry 'absent'" in fail("zoo", "show", zoo.path, "absent")


def test_stats_print_tables_or_json(whole, tmp_path):
    text = succeed("zoo", "stats", whole.path, "--plot", tmp_path / "a.png", "--out", tmp_path / "a.json")
    assert "Gain by plan" in text
    assert f"{ENTRIES} entries, 0 failed tasks" in text
    assert (tmp_path / "a.png").exists()
    printed = json.loads(succeed("zoo", "stats", whole.path, "--json"))
    written = json.loads((tmp_path / "a.json").read_text())
    assert printed.keys() == written.keys() >= {"schema", "name", "command", "commit", "date", "machine", "versions"}
    assert (written["schema"], written["name"], written["entries"]) == (1, "zoo_stats", ENTRIES)


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_what_is_no_zoo_is_refused(tmp_path, command):
    assert "is not a zoo" in fail("zoo", command, tmp_path)


def test_an_id_is_listed_in_one_piece(whole):
    """Of 80 columns, as there are where there is no terminal."""
    text = succeed("zoo", "list", whole.path)
    assert all(e.id in text for e in whole.entries())
