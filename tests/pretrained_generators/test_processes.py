"""One training by two real processes, over gloo, and in bfloat16, against one process in single precision."""

import dataclasses
import json
import os
import socket
from functools import partial

import pytest
import torch

from pretrained_generators.bundle import load_bundle
from pretrained_generators.training import loop
from pretrained_generators.training.processes import all_shares, own_share, process_group
from pretrained_generators.training.recipe import FunctionalStage, check_shares
from pretrained_generators.training.train import train_generator
from tests.pretrained_generators.small import RECIPE as SMALL
from tests.pretrained_generators.small import interrupted_stage
from zoo_builder.errors import RecipeError

STEPS = 3  # of each stage, with a checkpoint at the second
STAGES = {f"{stage}_training": dataclasses.replace(getattr(SMALL, f"{stage}_training"), steps=STEPS)
          for stage in ("vae", "encoder", "diffusion")}  # fmt: skip
RECIPE = dataclasses.replace(SMALL, **STAGES, functional_training=FunctionalStage(STEPS, batch_size=16, episodes=2))


def as_torchrun_does(rank, port, work, arguments):
    """What a process of two does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with process_group("cpu"):
        work(*arguments)


def in_two_processes(work, *arguments):
    """Run `work` in both; they are killed if they do not end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = torch.multiprocessing.start_processes(
        as_torchrun_does, (port, work, arguments), nprocs=2, start_method="fork", join=False
    )
    try:
        assert any(processes.join(60) for _ in range(5)), "they wait for each other"
    finally:
        for process in processes.processes:
            process.kill()


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"]) for line in lines[:-1]]


@pytest.fixture(scope="module", autouse=True)
def checkpoints_come_often():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_EVERY", 2)
        yield


@pytest.fixture(scope="module")
def alone(zoo, data_dir, tmp_path_factory):
    """The bundle that one process trains."""
    folder = tmp_path_factory.mktemp("alone")
    train_generator(zoo, RECIPE, folder, data_dir)
    return folder


def assert_the_same_training(folder, alone):
    """To a ten-thousandth of each loss; weights but for what Adam makes of gradients that are all rounding."""
    for found, expected in zip(losses(folder), losses(alone), strict=True):
        assert found == (*expected[:2], pytest.approx(expected[2], rel=1e-4))
    weights, expected = (load_bundle(f).generator.state_dict() for f in (folder, alone))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-2, atol=2e-3, msg=name)


def test_two_processes_train_what_one_does(zoo, data_dir, alone, tmp_path):
    in_two_processes(train_generator, zoo, RECIPE, tmp_path / "bundle", data_dir)
    assert len(losses(alone)) == 2 * 4
    assert_the_same_training(tmp_path / "bundle", alone)
    assert {p.name for p in (tmp_path / "bundle").iterdir()} == {p.name for p in alone.iterdir()}


def interrupted(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrained_generators.training.functional.train_stage", partial(interrupted_stage, after=2))
        with pytest.raises(KeyboardInterrupt):
            train_generator(*arguments)


def test_what_two_processes_began_one_goes_on_with(zoo, data_dir, alone, tmp_path):
    in_two_processes(interrupted, zoo, RECIPE, tmp_path / "bundle", data_dir)
    assert (tmp_path / "bundle" / "training" / "functional.resume").exists()
    train_generator(zoo, RECIPE, tmp_path / "bundle", data_dir)
    assert_the_same_training(tmp_path / "bundle", alone)


def refused(zoo, out, data_dir):
    shipped = dataclasses.replace(RECIPE, functional_training=FunctionalStage(6))
    with pytest.raises(RecipeError, match=r"functional_training.episodes: 2 processes cannot share 3 alike"):
        train_generator(zoo, shipped, out, data_dir)
    assert not out.exists()


def test_what_a_later_stage_cannot_share_is_told_before_any_work(zoo, data_dir, tmp_path):
    in_two_processes(refused, zoo, tmp_path / "bundle", data_dir)


@pytest.mark.parametrize(
    ("stage", "change", "told"),
    [
        ("encoder", {"batch_size": 3}, "encoder_training.batch_size: 2 processes cannot share 3 "),
        ("encoder", {"batch_size": 32}, r"encoder_training.batch_size: 2 .* share 7 alike \(7 entries"),
        ("diffusion", {"batch_size": 5}, "diffusion_training.batch_size: 2 processes cannot share 5 "),
        ("functional", {"episodes": 3}, "functional_training.episodes: 2 processes cannot share 3 "),
    ],
)
def test_every_batch_that_cannot_be_shared_is_named(stage, change, told):
    check_shares(RECIPE, 7, 2)
    changed = dataclasses.replace(getattr(RECIPE, f"{stage}_training"), **change)
    recipe = dataclasses.replace(RECIPE, **{f"{stage}_training": changed})
    check_shares(recipe, 7, 1)
    with pytest.raises(RecipeError, match=told):
        check_shares(recipe, 7, 2)


def test_stages_without_steps_share_nothing():
    none = {f"{stage}_training": dataclasses.replace(getattr(RECIPE, f"{stage}_training"), steps=0)
            for stage in ("diffusion", "functional")}  # fmt: skip
    check_shares(dataclasses.replace(RECIPE, **none), 8, 4)


def shares_are_alike():
    assert len(own_share(list(range(6)))) == 3
    assert all_shares(own_share(torch.arange(6.0))).tolist() == list(range(6))
    with pytest.raises(RecipeError, match="2 processes cannot share 3 samples"):
        own_share([1, 2, 3])


def test_shares_are_alike_and_make_up_the_batch():
    in_two_processes(shares_are_alike)
    assert own_share([1, 2, 3]) == [1, 2, 3]


def test_every_stage_trains_in_bfloat16(zoo, data_dir, alone, tmp_path):
    stages = {f.name: getattr(RECIPE, f.name) for f in dataclasses.fields(RECIPE) if f.name.endswith("_training")}
    halved = {name: dataclasses.replace(stage, bf16=True) for name, stage in stages.items()}
    train_generator(zoo, dataclasses.replace(RECIPE, **halved), tmp_path, data_dir)
    for found, expected in zip(losses(tmp_path), losses(alone), strict=True):
        assert found[2] != expected[2]
        assert found == (*expected[:2], pytest.approx(expected[2], rel=0.05))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_what_the_cpu_does(zoo, data_dir, alone, tmp_path):
    train_generator(zoo, RECIPE, tmp_path, data_dir, device="cuda")
    for found, expected in zip(losses(tmp_path), losses(alone), strict=True):
        assert found == (*expected[:2], pytest.approx(expected[2], rel=0.01))
