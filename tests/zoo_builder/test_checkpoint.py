"""Files that are whole or absent, and training that goes on from them as if it had never stopped."""

import os

import pytest
import torch
from torch import nn

from tests.zoo_builder.synthetic import copied, same, seeded
from zoo_builder.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_atomically
from zoo_builder.errors import D2NWGError
from zoo_builder.files import write_text_atomically

OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "sgd_momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


def new_training(optimizer, seed):
    """A model with BatchNorm, and decay on the matrices alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return model, OPTIMIZERS[optimizer](groups)


def train(model, optimizer, first, last):
    for step in range(first, last):
        x = torch.randn(16, 5, generator=seeded(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(16) % 3).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(tmp_path, name):
    model, optimizer = new_training(name, seed=0)
    train(model, optimizer, 0, 3)
    save_checkpoint(tmp_path / "state", {"model": model}, optimizer, {"step": 3})
    at_save = copied(model.state_dict())
    train(model, optimizer, 3, 6)

    other, its_optimizer = new_training(name, seed=1)
    assert load_checkpoint(tmp_path / "state", {"model": other}, its_optimizer) == {"step": 3}
    assert same(at_save, other.state_dict())
    train(other, its_optimizer, 3, 6)
    assert same(model.state_dict(), other.state_dict())
    assert not same(at_save, other.state_dict())


def test_several_modules_are_kept_apart(tmp_path):
    (first, optimizer), (second, _) = new_training("sgd", 0), new_training("sgd", 1)
    save_checkpoint(tmp_path / "state", {"model": first, "average": second}, optimizer, {})
    (a, its_optimizer), (b, _) = new_training("sgd", 2), new_training("sgd", 3)
    load_checkpoint(tmp_path / "state", {"average": b, "model": a}, its_optimizer)
    assert same(a.state_dict(), first.state_dict())
    assert same(b.state_dict(), second.state_dict())


def test_progress_comes_back_as_it_was(tmp_path):
    model, optimizer = new_training("sgd", 0)
    progress = {"epoch": 3, "accuracy": 71.5, "notes": ["é", None], "best": {"at": 2}}
    save_checkpoint(tmp_path / "state", {"model": model}, optimizer, progress)
    assert load_checkpoint(tmp_path / "state", {"model": model}, optimizer) == progress


def test_tensors_and_metadata_come_back_bit_for_bit(tmp_path):
    grid = torch.arange(12.0).view(3, 4)
    tensors = {
        "half": grid.half(),
        "transposed": grid.T,
        "same_memory": grid[1:],
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "whole": torch.tensor(7),
        "bytes": grid.byte(),
        "none": torch.zeros(0, 3),
        "nan": torch.tensor([float("nan"), float("inf")]),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    write_atomically(tmp_path / "new" / "folder" / "file", tensors, {"who": "é"})
    read, metadata = read_tensors(tmp_path / "new" / "folder" / "file")
    assert metadata == {"who": "é"}
    assert read.keys() == tensors.keys()
    for key, value in tensors.items():
        torch.testing.assert_close(read[key], value.detach(), rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [({"a": torch.zeros(3).to_sparse()}, {"n": "1"}), ({"a": torch.zeros(3)}, {"n": 1})],
    ids=["tensor", "metadata"],
)
def test_old_file_stays_when_the_new_one_cannot_be_written(tmp_path, tensors, metadata):
    path = tmp_path / "file.safetensors"
    write_atomically(path, {"a": torch.ones(3)}, {"n": "1"})
    before = path.read_bytes()
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        write_atomically(path, tensors, metadata)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_no_temporary_file_stays_when_the_move_fails(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_atomically(tmp_path / "taken", {"a": torch.ones(1)})
    assert os.listdir(tmp_path) == ["taken"]


def test_no_temporary_text_stays_when_the_move_fails(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_text_atomically(tmp_path / "taken", "text")
    assert os.listdir(tmp_path) == ["taken"]


def test_text_is_replaced(tmp_path):
    for text in ("first", "second é"):
        write_text_atomically(tmp_path / "folder" / "a.json", text)
    assert (tmp_path / "folder" / "a.json").read_text(encoding="utf-8") == "second é"
    assert os.listdir(tmp_path / "folder") == ["a.json"]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "header", "text", "folder"])
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "file.safetensors"
    write_atomically(path, {"a": torch.ones(300)})
    whole = path.read_bytes()
    path.unlink()
    contents = {"empty": b"", "cut": whole[:-5], "header": whole[:8] + b"x" + whole[9:], "text": b"not a model" * 9}
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(D2NWGError, match=r"file\.safetensors is not a readable"):
        read_tensors(path)


def test_cut_checkpoint_is_named(tmp_path):
    model, optimizer = new_training("adamw", 0)
    save_checkpoint(tmp_path / "state", {"model": model}, optimizer, {})
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-100])
    with pytest.raises(D2NWGError, match="state is not a readable"):
        load_checkpoint(tmp_path / "state", {"model": model}, optimizer)


@pytest.mark.parametrize("name", ["model", "other"])
def test_file_that_is_no_checkpoint_of_these_modules_is_named(tmp_path, name):
    model, optimizer = new_training("adamw", 0)
    write_atomically(tmp_path / "state", {f"{name}/{k}": v for k, v in model.state_dict().items()})
    with pytest.raises(D2NWGError, match="state"):
        load_checkpoint(tmp_path / "state", {"model": model}, optimizer)


def test_a_file_has_the_mode_of_any_other(tmp_path):
    write_atomically(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_what_is_no_safetensors_file_is_told_as_what_it_is(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    cases = {"w.pth": "saved as one by safetensors", ".": "Is a directory", "nowhere": "No such file or directory"}
    for name, words in cases.items():
        with pytest.raises(D2NWGError, match=words) as error:
            read_tensors(tmp_path / name)
        assert "remove it" not in str(error.value)
