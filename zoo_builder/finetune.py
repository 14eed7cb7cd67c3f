"""One task -> one entry: what the body became, and what it is worth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from zoo_builder.backbones import is_norm, prepare_images
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.clusters import embed_dataset
from zoo_builder.domain_images import SharedImages, stable_seed
from zoo_builder.errors import ZooError
from zoo_builder.objectives import Classification, Episodic, Objective, Sources
from zoo_builder.scoring import Probe, best_strength, mean_solved_accuracy, set_parameters
from zoo_builder.solved_head import solve_head
from zoo_builder.tasks import FineTuneTask

QUERIES, MIN_QUERIES = 1000, 200  # test images that score an entry: over all datasets, and of each at least
CURVE_POINTS = 20  # of the loss of a training
HALF_LOSES = 0.1  # points of accuracy that half precision may cost an entry; else it is kept in single precision


@dataclass(frozen=True)
class Start:
    """What a task goes on from: another entry, at the strength that served its datasets best."""

    delta: Mapping[str, torch.Tensor]
    learning_rate: float  # that it was kept at


@dataclass(frozen=True)
class FineTuneResult:
    delta: dict[str, torch.Tensor]  # the body's trained parameters minus the base's, float16 or float32
    heads: dict[str, torch.Tensor]  # DATASET/weight [K, d] and DATASET/bias [K] of trained heads; empty for episodic
    support: torch.Tensor  # uint8 [n, 3, S, S], a sample of the first dataset's train images
    support_labels: torch.Tensor  # int64 [n]
    embedding: torch.Tensor  # [2 d] float32, of the support
    metrics: dict[str, float]  # accuracies in percent, the best strength, the learning rate, seconds
    curve: list[tuple[int, float]]  # (step, mean loss since the point before)


def run_task(task: FineTuneTask, base: nn.Module, start: Start | None, shared: SharedImages) -> FineTuneResult:
    """Fine-tune `base` (a headless body; it comes back as it was) at each learning rate and keep the best.

    Deterministic in (task, base, start) on one machine.

    Raises:
        ZooError: the training diverged at every learning rate.
    """
    began = time.perf_counter()
    sources = {(n, d): shared.view(n, d, task) for n in (*task.datasets, *task.related) for d in task.domains}
    origin = {k: v.clone() for k, v in base.state_dict().items()}
    probes = task_probes(task, base, sources)
    rates = task.training.learning_rates
    if start is not None and task.training.rate_of_start is not None:
        rates = (task.training.rate_of_start * start.learning_rate,)
    floor = mean_solved_accuracy(base, probes)
    tried = []
    for rate in rates:
        base.load_state_dict(origin)
        result = _train(task, base, start, sources, probes, floor, rate)
        if result is not None:
            tried.append(result)
    base.load_state_dict(origin)
    if not tried:
        raise ZooError(f"{task.id} diverged at the learning rates {list(rates)}. Lower them.")
    best = max(tried, key=lambda r: r.metrics["best_accuracy"])
    return replace(best, metrics={**best.metrics, "seconds": time.perf_counter() - began})


def task_probes(task: FineTuneTask, base: nn.Module, sources: Sources) -> list[Probe]:
    """What a task is scored on: each of its datasets, in the first of its domains."""
    queries = max(MIN_QUERIES, QUERIES // len(task.datasets))
    return [Probe.of(base, sources[n, task.domains[0]], task.support, queries, task.seed) for n in task.datasets]


def _train(
    task: FineTuneTask,
    body: nn.Module,
    start: Start | None,
    sources: Sources,
    probes: list[Probe],
    floor: float,
    rate: float,
) -> FineTuneResult | None:
    """One training from base + start at one learning rate; None where it diverged. `body` is left as it became."""
    torch.manual_seed(stable_seed(task.seed, task.id))
    origin = {k: v.clone() for k, v in body.state_dict().items()}
    weights = {k: origin[k] for k, _ in body.named_parameters()}
    first = probes[0]
    embedding = embed_dataset(body.eval(), first.images[: len(first.labels)], first.labels)
    if start is not None:
        set_parameters(body, weights, start.delta, 1.0)
    recalibrate_batchnorm(body, first.images[: len(first.labels)])
    heads = {} if task.kind == "episodic" else _solved_heads(body, task, probes)
    objective = Episodic(task, sources) if task.kind == "episodic" else Classification(task, sources, heads)
    curve = _fit(body, objective, task, rate)
    trained = _trained(body, task.scope)
    delta = {k: p.detach() - weights[k] for k, p in trained.items()}
    tensors = [*delta.values(), *(p.detach() for p in objective.parameters())]
    if not all(torch.isfinite(t).all() for t in tensors):
        return None

    set_parameters(body, weights, delta, 1.0)
    pairs = [p.accuracies(body, heads.get(n)) for n, p in zip(task.datasets, probes, strict=True)]
    whole, with_heads = (sum(part) / len(part) for part in zip(*pairs, strict=True))
    kept = {k: v.half() for k, v in delta.items()}
    scores, loses = None, whole  # all of it, where half precision overflows
    if all(torch.isfinite(t).all() for t in kept.values()):
        scores = best_strength(body, origin, kept, probes, floor)
        loses = whole - scores.accuracies[1.0]
    if scores is None or loses >= HALF_LOSES:
        kept, scores = delta, best_strength(body, origin, delta, probes, floor)
    metrics = {
        "solved_accuracy": floor,
        "accuracy": scores.accuracies[1.0],
        "best_accuracy": scores.best_accuracy,
        "best_strength": scores.best,
        "gain": scores.best_accuracy - floor,
        "half_precision_loses": loses,
        "learning_rate": rate,
        "last_loss": curve[-1][1],
    }
    if heads:
        metrics["head_accuracy"] = with_heads
    return FineTuneResult(
        delta=kept,
        heads={f"{n}/{k}": v.detach().clone() for n, head in heads.items() for k, v in head.state_dict().items()},
        support=first.support,
        support_labels=first.labels,
        embedding=embedding,
        metrics=metrics,
        curve=curve,
    )


def _fit(body: nn.Module, objective: Objective, task: FineTuneTask, rate: float) -> list[tuple[int, float]]:
    """SGD with momentum under one cycle, gradients clipped, in place; the curve of the loss."""
    training = task.training
    trained = _trained(body, task.scope)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name in trained)
    parameters = [*trained.values(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=training.steps,
        warmup_t=max(1, training.steps // 10),
        warmup_lr_init=rate / 20,
        t_in_epochs=False,
    )
    rng = np.random.default_rng(stable_seed(task.seed, task.id, "batches"))
    body.train(task.scope != "head")
    device = next(body.parameters()).device
    curve: list[tuple[int, float]] = []
    since, every = torch.zeros((), device=device), max(1, training.steps // CURVE_POINTS)
    for step in range(training.steps):
        schedule.step_update(step)
        batch = objective.draw(rng)
        batch = batch._replace(images=batch.images.to(device), labels=batch.labels.to(device))
        loss = objective.loss(body(prepare_images(body, batch.images)), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        since += loss.detach()  # read at the points of the curve alone: on a GPU each reading waits for it
        if (step + 1) % every == 0 or step + 1 == training.steps:
            curve.append((step + 1, since.item() / (step + 1 - (curve[-1][0] if curve else 0))))
            since.zero_()
    for parameter in body.parameters():
        parameter.requires_grad_(True)
    return curve


def _trained(body: nn.Module, scope: str) -> dict[str, nn.Parameter]:
    """The body's parameters that a scope trains."""
    if scope == "all":
        return dict(body.named_parameters())
    norms = [name for name, module in body.named_modules() if is_norm(module)] if scope == "head+norm" else []
    return {n: p for n, p in body.named_parameters() if n.rpartition(".")[0] in norms}


def _solved_heads(body: nn.Module, task: FineTuneTask, probes: list[Probe]) -> dict[str, nn.Linear]:
    """A head for each dataset, started where the closed form puts it."""
    heads = {}
    for name, probe in zip(task.datasets, probes, strict=True):
        features = probe.features(body, query=False)
        solved = solve_head(features, probe.labels, probe.num_classes)
        heads[name] = nn.Linear(features.shape[1], probe.num_classes)
        heads[name].load_state_dict({"weight": solved.weight, "bias": solved.bias})
    return heads
