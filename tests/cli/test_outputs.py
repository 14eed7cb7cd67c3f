"""Where nothing can be written a command says so, before its work where that can be told."""

import pytest

from tests.cli.conftest import fail, run, succeed

FILES = [
    ("init", "test_resnet", "--data", "digits", "--out", "{}.safetensors"),
    ("demo", "--plot", "{}"),
    ("demo", "--out", "{}"),
    ("zoo", "base", "--data", "nowhere", "--out", "{}"),
    ("zoo", "export", "nowhere", "--out", "{}"),
    ("zoo", "stats", "nowhere", "--plot", "{}"),
    ("zoo", "stats", "nowhere", "--out", "{}"),
    ("bench", "init", "--out", "{}"),
    ("bench", "transfer", "--data", "nowhere", "--zoo", "nowhere", "--out", "{}"),
]
FOLDERS = [
    ("init", "test_resnet", "--data", "digits", "--out", "{}"),
    ("zoo", "build", "--recipe", "small", "--data", "nowhere", "--base", "none", "--out", "{}"),
    ("generator", "train", "--zoo", "nowhere", "--recipe", "small", "--out", "{}"),
    ("bundle", "pull", "org/name", "--out", "{}"),
]


def with_path(command, path):
    return [part.replace("{}", str(path)) for part in command]


@pytest.mark.parametrize("command", FILES + FOLDERS, ids=" ".join)
def test_a_path_under_a_file_is_refused_before_the_work(command, tmp_path):
    (tmp_path / "taken").touch()
    assert "taken is a file" in fail(*with_path(command, tmp_path / "taken" / "under"))


@pytest.mark.parametrize("command", FILES, ids=" ".join)
def test_a_folder_in_place_of_a_file_is_refused_before_the_work(command, tmp_path):
    for name in ("taken", "taken.safetensors"):
        (tmp_path / name).mkdir()
    assert "is a folder; expected the name of a file" in fail(*with_path(command, tmp_path / "taken"))


@pytest.mark.parametrize("command", FOLDERS, ids=" ".join)
def test_a_file_in_place_of_a_folder_is_refused_before_the_work(command, tmp_path):
    (tmp_path / "taken").touch()
    assert "taken cannot be a folder" in fail(*with_path(command, tmp_path / "taken"))


def test_a_long_path_is_whole_in_a_message(tmp_path):
    path = tmp_path / ("x" * 100)
    assert str(path) in run("zoo", "list", path).stderr


def test_an_error_of_the_system_is_a_message(whole, tmp_path):
    assert "OSError" in fail("zoo", "export", whole.path, "--out", tmp_path / ("x" * 300 + ".csv"))
    succeed("zoo", "export", whole.path, "--out", tmp_path / "new" / "index.csv")


def test_a_reader_that_has_gone_is_none(monkeypatch, tmp_path):
    def stop(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("zoo_builder.datasets.load_dataset", stop)
    result = run("init", "test_resnet", "--data", "digits", "--out", tmp_path / "weights")
    assert result.exit_code == 1
    assert result.stderr == ""
