"""Tasks -> entries: what the body became, and what it is worth. Tasks of one plan may run side by side."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import nn

from zoo_builder.backbones import is_norm, prepare_images
from zoo_builder.batchnorm import equal_batches
from zoo_builder.batchnorm_fit import BatchNormFit, fit_batchnorm
from zoo_builder.clusters import embed_dataset
from zoo_builder.domain_images import DomainImages, SharedImages, sample_images, stable_seed
from zoo_builder.errors import D2NWGError, ZooError
from zoo_builder.finetune_result import (
    FineTuneResult,
    Member,
    PreparedTask,
    Start,
    TrainedMember,
    is_finite,
    score_members,
    score_probes,
)
from zoo_builder.model_stack import ModelStack, shifted
from zoo_builder.objectives import Batch, Key, Sampler, SolvedHeads, Sources, TrainedHeads, collate
from zoo_builder.scoring import Delta, Probe, mean_accuracy
from zoo_builder.tasks import FineTuneTask
from zoo_builder.training_loop import fit

QUERIES, MIN_QUERIES = 1000, 200  # test images that score an entry: over all datasets, and of each at least


def run_tasks(
    tasks: Sequence[FineTuneTask],
    base: nn.Module,
    starts: Sequence[Start | None],
    shared: SharedImages,
    *,
    at_once: int = 1,
    bf16: bool = False,
    batchnorm: BatchNormFit = "rescaled",
) -> dict[str, FineTuneResult | D2NWGError]:
    """Fine-tune `base` (a headless body; it comes back as it was) on tasks of one plan, each at each of its learning
    rates, of which the best is kept; up to `at_once` models in one pass. By task id; an error of one task stands in its
    place.

    Deterministic in the arguments on one machine. `bf16`: the body's forward pass in training is in bfloat16.
    """
    began = time.perf_counter()
    modes = [(m, m.training) for m in base.modules()]
    results: dict[str, FineTuneResult | D2NWGError] = {}
    prepared = []
    views: dict[tuple[object, ...], tuple[DomainImages, Delta]] = {}
    scored = {(name, task.domains[0]) for task in tasks for name in task.datasets}
    try:
        for task, start in zip(tasks, starts, strict=True):
            try:
                prepared.append(_prepare(task, base, start, shared, views, scored, batchnorm))
            except D2NWGError as e:
                results[task.id] = e
        members = _members(prepared, base, at_once)
        together = at_once if tasks[0].scope != "head" else 1  # in evaluation mode statistics of its own are needed
        trained: list[TrainedMember] = []
        for first in range(0, len(members), together):
            trained += _train(members[first : first + together], base, bf16)
        whole = [(m, t) for m, t in zip(members, trained, strict=True) if is_finite(t)]
        tried = score_members(whole, base, at_once)
    finally:
        for module, mode in modes:
            module.training = mode
    seconds = (time.perf_counter() - began) / len(tasks)
    for p in prepared:
        own = [result for (m, _), result in zip(whole, tried, strict=True) if m.prepared is p]
        if own:
            best = max(own, key=lambda r: r.metrics["best_accuracy"])
            results[p.task.id] = replace(best, metrics={**best.metrics, "seconds": seconds})
        else:
            results[p.task.id] = ZooError(f"{p.task.id} diverged at the learning rates {_rates(p)}. Lower them.")
    return results


def task_probes(task: FineTuneTask, base: nn.Module, sources: Sources, batchnorm: BatchNormFit) -> list[Probe]:
    """What a task is scored on: each of its datasets, in the first of its domains."""
    queries = max(MIN_QUERIES, QUERIES // len(task.datasets))
    views = [sources[name, task.domains[0]] for name in task.datasets]
    return [Probe.of(base, view, task.support, queries, task.seed, batchnorm) for view in views]


def _prepare(
    task: FineTuneTask,
    base: nn.Module,
    start: Start | None,
    shared: SharedImages,
    views: dict[tuple[object, ...], tuple[DomainImages, Delta]],
    scored: Collection[tuple[str, str]],
    batchnorm: BatchNormFit,
) -> PreparedTask:
    """`views` are what tasks share: images on the device of `base`, and the fit of its BatchNorm to them; `scored` are
    those that need a test part."""
    device = next(base.parameters()).device
    sources: dict[Key, DomainImages] = {}
    fits: dict[Key, Delta] = {}
    for name in (*task.datasets, *task.related):
        for domain in task.domains:
            key = (name, domain, task.class_subset, task.seed)
            if key not in views:
                images = shared.view(name, domain, task, test=(name, domain) in scored).to(device)
                some, _ = sample_images(images.x_train, task.support, task.seed)
                views[key] = images, fit_batchnorm(base, prepare_images(base, some), batchnorm)
            sources[name, domain], fits[name, domain] = views[key]
    probes = task_probes(task, base, sources, batchnorm)
    labels = probes[0].labels.to(device)
    embedding = embed_dataset(base.eval(), probes[0].images[: len(labels)], labels).cpu()
    return PreparedTask(task, start, sources, fits, probes, embedding)


def _rates(p: PreparedTask) -> list[float]:
    training = p.task.training
    if p.start is not None and training.rate_of_start is not None:
        return [training.rate_of_start * p.start.learning_rate]
    return list(training.learning_rates)


def _members(prepared: Sequence[PreparedTask], base: nn.Module, at_once: int) -> list[Member]:
    """A member for each task and rate, with what the base is worth and with heads solved on what it goes on from."""
    floors = score_probes([(p, {}, 1.0, None) for p in prepared], base, at_once)
    begun = [p for p in prepared if p.start is not None and p.task.kind != "episodic"]
    solved = iter(score_probes([(p, p.start.delta if p.start else {}, 1.0, None) for p in begun], base, at_once))
    members = []
    for p, floor in zip(prepared, floors, strict=True):
        heads = [s.solved for s in (next(solved) if p in begun else floor)]
        members += [Member(p, rate, mean_accuracy(floor), heads) for rate in _rates(p)]
    return members


def _train(members: Sequence[Member], base: nn.Module, bf16: bool) -> list[TrainedMember]:
    """All members in one stack."""
    tasks = {m.task.id: m.prepared for m in members}
    first = members[0].task
    device = next(base.parameters()).device
    torch.manual_seed(stable_seed(first.seed, first.id))
    weights = {k: p.detach() for k, p in base.named_parameters()}
    starts = [m.prepared.start.delta if m.prepared.start else {} for m in members]
    names = _trained_names(base, first.scope)
    stack = ModelStack(base, [shifted(weights, delta) for delta in starts], names)
    if first.scope == "head":
        probe = members[0].prepared.probes[0]
        batches = (part[None] for part in equal_batches(probe.images[: len(probe.labels)]))
        stack.recalibrate(batches, {k: v[None] for k, v in probe.fit.items()})
    episodic = first.kind == "episodic"
    objective = SolvedHeads() if episodic else TrainedHeads([m.heads for m in members], device)
    samplers = {i: Sampler(p.task, p.sources, p.fits) for i, p in tasks.items()}

    def draw_batch() -> Batch:
        drawn = {i: sampler.draw() for i, sampler in samplers.items()}
        return collate([drawn[m.task.id] for m in members], device)

    base.train(first.scope != "head")
    curves = fit(stack, objective, draw_batch, first.training, [m.rate for m in members], bf16=bf16)
    return [
        TrainedMember(
            {k: (stack.parameters[k][i] - weights[k]).detach().cpu() for k in names},
            [] if isinstance(objective, SolvedHeads) else objective.heads(i, [len(bias) for _, bias in m.heads]),
            curve,
        )
        for i, (m, curve) in enumerate(zip(members, curves, strict=True))
    ]


def _trained_names(body: nn.Module, scope: str) -> list[str]:
    """The body's parameters that a scope trains."""
    names = [name for name, _ in body.named_parameters()]
    if scope == "all":
        return names
    norms = [name for name, module in body.named_modules() if is_norm(module)] if scope == "head+norm" else []
    return [name for name in names if name.rpartition(".")[0] in norms]
