"""What a generator is worth before any training, where one number of its recipe is another, or its zoo has fewer
datasets: it is trained anew for each choice, and measured on the development sets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from d2nwg_init.benchmarks.measurable import check_measurable
from d2nwg_init.benchmarks.results import AS_IT_IS, ChoiceRow
from d2nwg_init.benchmarks.transfer.benchmark import tied
from d2nwg_init.benchmarks.transfer.cells import read_cell
from d2nwg_init.benchmarks.transfer.methods import METHODS, Method
from d2nwg_init.benchmarks.transfer.plan import Choices, plan_cells
from d2nwg_init.benchmarks.transfer.run import run_cells
from d2nwg_init.benchmarks.transfer.subject import SubjectSpec, open_subject, work_folder, zoo_name
from pretrained_generators.training.recipe import GeneratorRecipe, check_recipe
from pretrained_generators.training.train import train_generator
from zoo_builder.build import begin_zoo, build
from zoo_builder.datasets import ImageDataset, dataset_names, load_dataset
from zoo_builder.errors import RecipeError, ZooError, nearest_names
from zoo_builder.executors.processes import process_executor
from zoo_builder.files import write_bytes
from zoo_builder.store import Zoo
from zoo_builder.tasks import ZooRecipe, choose_datasets

ROWS = ("no_generator", "generated_mean", "initialize")
HYPER_PARAMETERS = (  # part of the recipe, number, factor
    ("vae", "latent", 0.5),
    ("vae", "latent", 2),
    ("vae", "width", 0.5),
    ("diffusion", "width", 0.5),
    ("diffusion", "depth", 0.5),
    ("functional_training", "steps", 0.5),
    ("functional_training", "steps", 2),
    ("functional_training", "learning_rate", 0.3),
    ("functional_training", "learning_rate", 3),
)
ZOO_DATASETS = "zoo_datasets"  # metric: how many the zoo was trained on


@dataclass(frozen=True)
class MeasuredOn:
    """What is measured, beside the generators."""

    datasets: tuple[str, ...]
    seeds: int
    plans: tuple[str, ...]  # of the zoo, whose entries no_generator combines
    universal: str


@dataclass(frozen=True)
class Choice:
    label: str
    zoo: str  # folder or fsspec URL
    recipe: GeneratorRecipe


@dataclass(frozen=True)
class SmallerZoos:
    """Zoos of the first datasets of one order, those first that a plan asks for by name."""

    recipe: ZooRecipe
    sizes: tuple[int, ...]  # datasets

    def recipe_of(self, size: int, data: Path) -> ZooRecipe:
        """Raises: RecipeError, there are no more datasets than that, or a plan asks for more."""
        names = choose_datasets(self.recipe, dataset_names(data))
        named = [n for n in names if any(n in plan.datasets for plan in self.recipe.plans)]
        if not len(named) < size < len(names):
            raise RecipeError(
                f"A smaller zoo has more than {len(named)} and fewer than {len(names)} datasets, got {size}."
            )
        others = np.random.default_rng(self.recipe.seed).permutation([n for n in names if n not in named])
        return replace(self.recipe, datasets=tuple(sorted([*named, *others[: size - len(named)].tolist()])))


def choices(zoo: str, recipe: GeneratorRecipe, sizes: Sequence[int], work: Path) -> list[Choice]:
    """The recipe on the zoo, and everything that differs from it by one thing."""
    found = [Choice(AS_IT_IS, zoo, recipe)]
    for part, number, factor in HYPER_PARAMETERS:
        stage = getattr(recipe, part)
        was = getattr(stage, number)
        if was:  # a stage of no steps stays out
            value = type(was)(was * factor)
            changed = replace(recipe, **{part: replace(stage, **{number: value})})
            found.append(Choice(f"{part}.{number} = {value:g}", zoo, changed))
    return found + [Choice(f"{size} datasets", str(work / f"zoo-{size}"), recipe) for size in sizes]


def run_sensitivity(
    zoo: str,
    recipe: GeneratorRecipe,
    smaller: SmallerZoos,
    measured_on: MeasuredOn,
    data: Path,
    only: Sequence[str],
    work: Path,
    workers: int = 0,
) -> tuple[list[ImageDataset], list[ChoiceRow], list[str]]:
    """Build the smaller zoos, train the generators and measure them; what is in `work` already is kept. `only` are
    labels of choices; empty takes all. The last of what is returned are the commits that measured it.

    Raises:
        RecipeError: an unknown choice, or one that cannot be trained, or a zoo cannot have so many datasets.
        ZooError: a zoo cannot be read or built. DataError: a dataset is not in `data`, or has no test images.
    """
    datasets = [load_dataset(name, data) for name in measured_on.datasets]
    for dataset in datasets:
        check_measurable(dataset)
    hashes = {name: d.sha256 for name, d in zip(measured_on.datasets, datasets, strict=True)}
    workers = workers or os.cpu_count() or 1
    recipes = {str(work / f"zoo-{size}"): smaller.recipe_of(size, data) for size in smaller.sizes}
    rows: list[ChoiceRow] = []
    commits: set[str] = set()
    chosen = _chosen(choices(zoo, recipe, smaller.sizes, work), only)
    for choice in chosen:  # all of them before the first is trained, which takes hours
        _check(choice)
    for choice in chosen:
        if choice.zoo in recipes:
            _build(Path(choice.zoo), Zoo.open(zoo), recipes[choice.zoo], data, workers)
        bundle = work / choice.label.replace(" ", "")
        train_generator(Zoo.open(choice.zoo), choice.recipe, bundle, data)
        found, by = _measured(choice, bundle, measured_on, hashes, data, work, workers)
        rows += found
        commits |= by
    return datasets, rows, sorted(commits)


def _check(choice: Choice) -> None:
    try:
        check_recipe(choice.recipe)
    except RecipeError as e:
        raise RecipeError(
            f"The choice {choice.label!r} cannot be trained: {e} Leave it out of --choices, or take another --recipe."
        ) from e


def _chosen(planned: Sequence[Choice], only: Sequence[str]) -> list[Choice]:
    labels = [c.label for c in planned]
    for label in only:
        if label not in labels:
            raise RecipeError(f"unknown choice {label!r}; {nearest_names(label, labels)}")
    return [c for c in planned if not only or c.label in only]


def _build(out: Path, like: Zoo, recipe: ZooRecipe, data: Path, workers: int) -> None:
    base = out.with_name("base.safetensors")  # the zoo that it is of may be at a URL
    write_bytes(base, (like.path / "base.safetensors").read_bytes())
    zoo, tasks, sources = begin_zoo(out, like.backbone, base, recipe, data)
    failed = build(zoo, tasks, sources, data, process_executor(workers))
    if failed:
        raise ZooError(f"{len(failed)} of {len(tasks)} tasks of {out} failed, the first: {next(iter(failed.values()))}")


def _measured(
    choice: Choice,
    bundle: Path,
    measured_on: MeasuredOn,
    hashes: Mapping[str, str],
    data: Path,
    work: Path,
    workers: int,
) -> tuple[list[ChoiceRow], set[str]]:
    """Rows, and the commits of their cells."""
    spec = SubjectSpec(choice.zoo, str(bundle), measured_on.plans, measured_on.universal)
    folder = work_folder(spec, work)
    subject = open_subject(spec, folder)
    assert subject.bundle is not None
    config, name = subject.bundle.config, zoo_name(Zoo.open(choice.zoo))
    values = {ZOO_DATASETS: float(len(config.trained_on)), **config.measured}
    rows = [ChoiceRow(name, "zoo", "generator", 0, k, v, "", choice=choice.label) for k, v in values.items()]
    planned = plan_cells(_untrained(), measured_on.datasets, (None,), range(measured_on.seeds), Choices())
    cells = tied(planned, subject, hashes)
    run_cells(cells, spec, folder, data, process_executor(workers))
    read = {c: read_cell(folder / "cells", c) for c in cells}
    rows += [
        ChoiceRow(
            name,
            c.dataset,
            c.method,
            c.seed,
            "test_accuracy",
            round(measured.accuracy("step/0"), 3),
            "%",
            step=0,
            sample=c.sample,
            choice=choice.label,
        )
        for c, measured in read.items()
    ]
    return rows, {measured.commit or "unknown" for measured in read.values()}


def _untrained() -> dict[str, Method]:
    """ROWS at step 0 and under their right condition alone."""
    return {name: replace(METHODS[name], trained=False, conditions=("right",)) for name in ROWS}
