import json

import pytest
import torch
from torch import nn

from pretrained_generators.attention import AttentionBlock
from pretrained_generators.training import loop
from pretrained_generators.training.loop import train_stage
from pretrained_generators.training.recipe import Stage
from tests.pretrained_generators.small import copied, same
from zoo_builder.errors import RecipeError

STAGE = Stage(steps=12, learning_rate=0.05)


@pytest.fixture(autouse=True)
def checkpoints_come_often(monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 5)


def new_module():
    """Weights, and a buffer that training changes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


class Loss:
    """Of a regression, and a stop before a given call."""

    def __init__(self, module, stop_at=None):
        self.module, self.stop_at, self.calls = module, stop_at, 0

    def __call__(self, generator):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        x = torch.randn(16, 3, generator=generator)
        return (self.module(x) - x.sum(1, keepdim=True)).square().mean()


def trained(folder, stop_at=None, seed=0, stage=STAGE):
    module = new_module()
    loss = Loss(module, stop_at)
    train_stage("part", module, stage, loss, folder, seed)
    return module, loss.calls


def test_training_lowers_the_loss(tmp_path):
    module, _ = trained(tmp_path, stage=Stage(steps=100, learning_rate=0.05, ema_decay=0.9))
    draw = torch.Generator().manual_seed(1)
    assert Loss(module)(draw) < 0.3 * Loss(new_module().eval())(draw)
    assert not module.training


@pytest.mark.parametrize(("stop_at", "repeated"), [(3, 12), (5, 7), (8, 7), (11, 2)])
def test_interrupted_training_resumes_to_equal_bits(tmp_path, stop_at, repeated):
    whole, _ = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", stop_at)
    resumed, calls = trained(tmp_path / "parts")
    assert calls == repeated
    assert same(resumed.state_dict(), whole.state_dict())


def test_twice_interrupted_training_resumes_to_equal_bits(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    for stop_at in (6, 5):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", stop_at)
    resumed, calls = trained(tmp_path / "parts")
    assert calls == 2
    assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("saved", [False, True])
def test_a_kill_around_a_checkpoint_loses_no_line_of_the_log(saved, tmp_path, monkeypatch):
    def kill(*args, save=loop.save_checkpoint):
        if saved:
            save(*args)
        raise KeyboardInterrupt

    trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", kill)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts")
    trained(tmp_path / "parts")
    whole, parts = ((tmp_path / folder / "part.jsonl").read_text().splitlines() for folder in ("whole", "parts"))
    assert list(dict.fromkeys(parts)) == whole
    assert len(parts) == len(whole) + (not saved)  # that line is written again


def test_finished_stage_is_read_back_and_not_run(tmp_path):
    first, calls = trained(tmp_path)
    again, more = trained(tmp_path)
    assert (calls, more) == (12, 0)
    assert same(again.state_dict(), first.state_dict())


def test_another_seed_trains_other_weights(tmp_path):
    first, second = (trained(tmp_path / str(seed), seed=seed)[0] for seed in (0, 1))
    assert not same(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("seed", [-(2**43), 2**44 - 1])
def test_the_outermost_seeds_of_a_recipe_train(seed, tmp_path):
    trained(tmp_path, seed=seed)


def test_training_does_not_use_the_global_random_state(tmp_path):
    module = new_module()
    before = torch.get_rng_state()
    train_stage("part", module, STAGE, Loss(module), tmp_path, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_averaged_over_time(tmp_path):
    module = new_module()
    last = {}

    def watched(generator):
        last.update(copied(dict(module.named_parameters())))
        return loss(generator)

    loss = Loss(module)
    train_stage("part", module, STAGE, watched, tmp_path, 0)
    now = dict(module.named_parameters())
    # The last step has almost no learning rate left: without an average the weights would be those before it.
    assert max((now[k] - last[k]).abs().max().item() for k in now) > 1e-2


def test_log_has_a_line_for_each_checkpoint(tmp_path):
    trained(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "part.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("part", 5), ("part", 10), ("part", 12)]
    assert all(line["loss"] > 0 for line in lines)


def test_a_training_that_diverges_is_told_and_nothing_of_it_kept(tmp_path):
    with pytest.raises(RecipeError, match=r"training part diverges: at step \d .* Lower learning_rate"):
        trained(tmp_path, stage=Stage(steps=12, learning_rate=1e20))
    assert not any(tmp_path.iterdir())


def test_finished_stage_leaves_no_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, 8)
    assert (tmp_path / "part.resume").exists()
    trained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"part.safetensors", "part.jsonl"}


def test_compiled_blocks_train_to_the_same_weights(tmp_path, monkeypatch):
    """By dynamo alone: the compiler of what it finds would take a minute."""
    compiled = []

    def compile_for_eager(block):
        compiled.append(block)
        nn.Module.compile(block, backend="eager")

    monkeypatch.setattr(AttentionBlock, "compile", compile_for_eager)
    states = []
    for stage in (Stage(steps=3), Stage(steps=3, compile=True)):
        torch.manual_seed(0)
        module = nn.Sequential(AttentionBlock(8, 2), nn.Linear(8, 1))
        loss = lambda noise, m=module: m(torch.randn(4, 5, 8, generator=noise)).square().mean()  # noqa: E731
        train_stage("part", module, stage, loss, tmp_path / str(stage.compile), 0)
        states.append(module.state_dict())
    assert compiled == [module[0]]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor)
