"""The training loop of a generator's stages: AdamW, one cycle, EMA, a checkpoint every so often, a log in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import nn

from pretrained_generators.attention import AttentionBlock
from pretrained_generators.training.processes import is_first, mean_of_all, wait_for_all, with_gradients_of_all
from pretrained_generators.training.recipe import Stage
from zoo_builder.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_atomically
from zoo_builder.errors import RecipeError
from zoo_builder.progress import progress_bar
from zoo_builder.training_loop import one_cycle

CHECKPOINT_EVERY = 50  # steps


def _files(name: str, folder: Path) -> list[Path]:
    """Of a stage: its result, what it resumes from, its log."""
    return [folder / f"{name}.{end}" for end in ("safetensors", "resume", "jsonl")]


def has_begun(name: str, folder: Path) -> bool:
    """Whether `train_stage` reads the weights that it goes on from, whatever they are before."""
    done, state, _ = _files(name, folder)
    return done.exists() or state.exists()


def train_stage(
    name: str,
    module: nn.Module,
    stage: Stage,
    loss: Callable[[torch.Generator], torch.Tensor],
    folder: Path,
    seed: int,
) -> None:
    """Train `module` in place on `loss(generator)`; it ends with its weights averaged over time.

    Each step draws from a generator seeded by (seed, step), so that a run that was killed goes on from its last
    checkpoint in `folder` to the same weights. A finished stage is read back, not run again. Under torchrun `loss` is
    of a process's own share of the batch, and the first process writes.

    Raises:
        RecipeError: the loss, or its gradient, is not finite any more.
    """
    done, state, log = _files(name, folder)
    finished = nn.ModuleDict({"module": module})
    if done.exists():
        finished.load_state_dict(read_tensors(done)[0])
        return
    average = ModelEmaV3(module, decay=stage.ema_decay, use_warmup=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    schedule = one_cycle(optimizer, stage.steps, max(1, stage.steps // 20), stage.learning_rate / 20)
    first = 0
    if state.exists():
        first = int(str(load_checkpoint(state, {"module": module, "average": average.module}, optimizer)["step"]))
    folder.mkdir(parents=True, exist_ok=True)
    module.train()
    if stage.compile:
        for block in (m for m in module.modules() if isinstance(m, AttentionBlock)):
            block.compile()
    loss, device = with_gradients_of_all(module, loss), next(module.parameters()).device
    recent: list[torch.Tensor] = []  # losses since the last line of the log
    with progress_bar(f"training {name} -> {folder}", total=stage.steps, done=first, show=is_first()) as bar:
        for step in range(first, stage.steps):
            schedule.step_update(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=stage.bf16):
                value = loss(torch.Generator().manual_seed(seed * 1_000_003 + step))
            optimizer.zero_grad()
            value.backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            if not torch.isfinite(norm):  # in all processes at once, and before a weight is spoilt
                raise RecipeError(
                    f"training {name} diverges: at step {step + 1} the loss is {value.item():.3g}, and its gradient is "
                    f"not finite. Lower learning_rate of this stage, remove {folder}, and train again."
                )
            optimizer.step()
            average.update(module, step=step)
            bar.advance()
            recent.append(value.detach())
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == stage.steps:
                mean = mean_of_all(torch.stack(recent).mean())
                bar.note(f"loss {mean:.4f}")
                if is_first():
                    with log.open("a") as file:  # before the checkpoint: cut off between, it comes twice and not never
                        file.write(json.dumps({"stage": name, "step": step + 1, "loss": mean}) + "\n")
                    save_checkpoint(state, {"module": module, "average": average.module}, optimizer, {"step": step + 1})
                recent = []
    module.load_state_dict(average.module.state_dict())
    module.eval()
    if is_first():
        write_atomically(done, finished.state_dict())
        state.unlink(missing_ok=True)
    wait_for_all()
