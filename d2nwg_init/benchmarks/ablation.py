"""What each part is worth: the hook, or one unselected sample, with one choice made otherwise."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from d2nwg_init.benchmarks.measurable import check_measurable
from d2nwg_init.benchmarks.results import AS_IT_IS, ChoiceRow, source_state
from d2nwg_init.benchmarks.transfer.arena import Arena
from d2nwg_init.benchmarks.transfer.cells import Cell, Measured, missing, read_cell, write_cell
from d2nwg_init.benchmarks.transfer.subject import SubjectSpec, open_subject
from d2nwg_init.candidates import solve_in_place
from d2nwg_init.hook import initialize
from d2nwg_init.refine import STEPS
from pretrained_generators.generator import Generator
from zoo_builder.backbones import predict
from zoo_builder.datasets import ImageDataset, load_dataset
from zoo_builder.model_stack import shifted
from zoo_builder.progress import progress_bar


def _hook(**options: Any) -> Callable[[Arena], nn.Module]:
    def build(arena: Arena) -> nn.Module:
        model = arena.pretrained()
        given = {"generator": arena.subject.bundle} | options
        initialize(model, arena.loader(), seed=arena.seed, progress=False, **given)
        return model

    return build


def _sample(conditioned: bool = True, **options: Any) -> Callable[[Arena], nn.Module]:
    def build(arena: Arena) -> nn.Module:
        generator = _generator(arena)
        condition = _condition(arena) if conditioned else None
        return arena.solved(generator.sample_deltas(condition, 1, arena.seed, **options)[0])

    return build


@torch.no_grad()
def _anchor_alone(arena: Arena) -> nn.Module:
    generator = _generator(arena)
    return arena.solved(generator.decoded(generator.anchor(_condition(arena))))


@torch.no_grad()
def _without_anchor(arena: Arena) -> nn.Module:
    generator, noise = _generator(arena), torch.Generator().manual_seed(arena.seed)
    latent = generator.diffusion.sample(_condition(arena), 1, noise)
    return arena.solved(generator.decoded(latent[0]))


def _not_rescaled(arena: Arena) -> nn.Module:
    """BatchNorm is recalibrated alone."""
    delta = _generator(arena).sample_deltas(_condition(arena), 1, arena.seed)[0]
    return arena.with_body(shifted(arena.subject.parameters(), delta))


def _base_statistics(arena: Arena) -> nn.Module:
    """BatchNorm keeps the statistics of the base."""
    delta = _generator(arena).sample_deltas(_condition(arena), 1, arena.seed)[0]
    model, support = arena.pretrained().to(memory_format=torch.channels_last), arena.support
    model.load_state_dict(shifted(arena.subject.parameters(), delta), strict=False)
    solve_in_place(model, support.images, support.labels)
    return model


def _generator(arena: Arena) -> Generator:
    assert arena.subject.bundle is not None
    return arena.subject.bundle.generator


def _condition(arena: Arena) -> torch.Tensor:
    support = arena.support
    return _generator(arena).embed(support.images, support.labels, support.num_classes)


CHOICES: Mapping[str, Mapping[str, Callable[[Arena], nn.Module]]] = {
    "initialize": {
        AS_IT_IS: _hook(),
        "no refining": _hook(refining_steps=0),
        "half of the refining steps": _hook(refining_steps=STEPS // 2),
        "twice the refining steps": _hook(refining_steps=2 * STEPS),
        "four times the refining steps": _hook(refining_steps=4 * STEPS),
        "no bundle": _hook(generator=None, refining_steps=STEPS),
        "1 candidate": _hook(num_candidates=1),
        "32 candidates": _hook(num_candidates=32),
        "the first sample, not selected": _hook(select=False),
        "256 images": _hook(num_support=256),
        "512 images": _hook(num_support=512),
    },
    "sample": {
        AS_IT_IS: _sample(),
        "the anchor alone": _anchor_alone,
        "no anchor": _without_anchor,
        "no condition and no anchor": _sample(conditioned=False),
        "guidance 2": _sample(guidance=2.0),
        "5 sampling steps": _sample(steps=5),
        "200 sampling steps": _sample(steps=200),
        "BatchNorm recalibrated alone": _not_rescaled,
        "BatchNorm statistics of the base": _base_statistics,
    },
}


def run_ablation(
    bundle: str, names: Sequence[str], data: Path | None, seeds: int, work: Path
) -> tuple[list[ImageDataset], list[ChoiceRow]]:
    """Test accuracy at step 0, and seconds, of every choice on every dataset. What is measured is kept in `work`, by
    the commit, and what was changed since, that it was measured at (of an installed package by the version).

    Raises:
        BundleError: the bundle cannot be read. DataError: a dataset cannot, or it has no test images, or the bundle was
            trained on it.
    """
    work = work / (source_state() or version("d2nwg-init"))
    subject = open_subject(SubjectSpec(None, bundle, (), ""), work)
    datasets = [load_dataset(name, data, size=subject.size, max_images=None) for name in names]
    for dataset in datasets:
        check_measurable(dataset, [subject.bundle.config] if subject.bundle else ())
    choices = [(of, choice) for of, group in CHOICES.items() for choice in group]
    rows: list[ChoiceRow] = []
    with progress_bar(f"ablating {subject.name} -> {work}", total=len(choices) * len(datasets) * seeds) as bar:
        for dataset, seed in itertools.product(datasets, range(seeds)):
            arena, data_digest = Arena(subject, dataset, seed, None), dataset.sha256[:10]
            for of, choice in choices:
                cell = Cell(dataset.name, None, seed, f"{of}, {choice}", bundle=subject.bundle_digest, data=data_digest)
                if missing(work, [cell]):
                    write_cell(work, cell, _measure(arena, CHOICES[of][choice]))
                found = read_cell(work, cell)
                row = functools.partial(ChoiceRow, subject.name, dataset.name, of, seed, choice=choice, step=0)
                rows.append(row(metric="test_accuracy", value=round(found.accuracy("step/0"), 3), unit="%"))
                rows.append(row(metric="seconds", value=round(found.seconds["initialise"], 3), unit="s"))
                bar.advance()
    return datasets, rows


def _measure(arena: Arena, build: Callable[[Arena], nn.Module]) -> Measured:
    images, labels = arena.test
    _ = arena.support  # made once, and no choice's to pay for
    torch.manual_seed(arena.seed)
    began = time.perf_counter()
    model = build(arena)
    seconds = time.perf_counter() - began
    correct = (predict(model, images).argmax(1) == labels).numpy()
    return Measured({"step/0": correct}, seconds={"initialise": seconds})


def mean_of(rows: Sequence[ChoiceRow], of: str, choice: str, metric: str) -> float:
    """Over datasets and seeds."""
    return mean(r.value for r in rows if (r.method, r.choice, r.metric) == (of, choice, metric))
