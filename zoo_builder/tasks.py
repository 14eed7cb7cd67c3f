"""A zoo recipe -> the list of fine-tuning tasks, each fully determined by its fields."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from zoo_builder.datasets.same_dataset import is_among
from zoo_builder.domains import DOMAINS
from zoo_builder.errors import RecipeError, nearest_names

PUNCTUATION = "_-+. "  # that a plan's name may have


@dataclass(frozen=True)
class Training:
    steps: int
    learning_rates: tuple[float, ...] = (0.003,)  # peaks of one cycle of Adam; each is tried, the best kept
    rate_of_start: float | None = None  # in place of learning_rates: this times the rate that the start was kept at
    batch_size: int = 128  # images
    classes: int = 10  # in an episode, at most


@dataclass(frozen=True)
class Plan:
    """One kind of task, over each dataset, over each cluster of related datasets, or over all at once."""

    name: str
    kind: Literal["finetune", "mixture", "episodic"]
    training: Training
    over: Literal["dataset", "cluster", "all"] = "dataset"
    datasets: tuple[str, ...] = ()  # of the recipe's; empty takes all
    domains: tuple[str, ...] = ("plain",)
    pool_domains: bool = False  # one task draws from all domains, in place of a task for each
    scope: Literal["all", "head", "head+norm"] = "all"  # parameters that are trained
    own_share: float = 1.0  # of a dataset's episodes that are its own; the rest are its cluster's
    class_subset: int | None = None  # a dataset with more classes than this gives a random subset of so many
    start: str | None = None  # a plan before this one, from whose task over the same dataset this one goes on
    seeds: int = 1


@dataclass(frozen=True)
class ZooRecipe:
    plans: tuple[Plan, ...]
    held_out: tuple[str, ...]  # names that no task may touch
    datasets: tuple[str, ...] = ()  # empty takes all of the data folder but the held-out ones
    max_clusters: int = 6
    leakage: Literal["refuse", "report", "off"] = "refuse"  # what to do about held-out images found in zoo sets
    keep: Literal["delta", "full"] = "delta"  # what an entry holds of the body
    size: int = 64  # pixels
    support: int = 512  # images kept with an entry and used to solve the head of its score
    seed: int = 0


@dataclass(frozen=True)
class FineTuneTask:
    plan: str
    kind: str  # "finetune", "mixture" or "episodic"
    datasets: tuple[str, ...]  # trained on, drawn alike, and scored on
    related: tuple[str, ...]  # what the share of episodes that is not its own is drawn from
    domains: tuple[str, ...]  # of each dataset; one drawn for each step
    scope: str
    training: Training
    own_share: float
    class_subset: int | None
    size: int
    support: int
    seed: int
    start: str | None = None  # the id of the task that this one goes on from; None is the base

    @property
    def scored_on(self) -> str:
        """The dataset; of several, whose mean alone is known, the first and how many more."""
        return self.datasets[0] + (f"+{len(self.datasets) - 1}" if len(self.datasets) > 1 else "")

    @property
    def look(self) -> str:
        """The domain; "pooled" where it drew from several."""
        return self.domains[0] if len(self.domains) == 1 else "pooled"

    @property
    def id(self) -> str:
        """A readable name with a digest of all fields: another setting is another entry."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        # "torchvision:X" and "hf:org/name" are dataset names too, and an id is a file's name.
        readable = "".join(c if c.isalnum() or c in "_+." else "_" for c in self.scored_on)
        return f"{self.plan}-{readable}-{self.look}-{self.seed}-{digest}"


def choose_datasets(recipe: ZooRecipe, available: Sequence[str]) -> tuple[str, ...]:
    """The recipe's datasets, or all that are available but the held-out ones.

    Raises:
        RecipeError: a held-out or unknown dataset, or none.
    """
    _check_unique("datasets", recipe.datasets)
    named = sorted({*recipe.datasets, *(d for plan in recipe.plans for d in plan.datasets)})
    forbidden = [name for name in named if is_among(name, recipe.held_out)]
    if forbidden:
        raise RecipeError(
            f"The recipe uses {forbidden}, which it holds out. A held-out dataset measures the result and must not "
            "train it: remove it from datasets, or from held_out."
        )
    # A name with a colon is of another source than the folder.
    for name in (n for n in named if ":" not in n and n not in available):
        raise RecipeError(f"The recipe uses the dataset {name!r}, which is not there; {nearest_names(name, available)}")
    chosen = recipe.datasets or tuple(sorted(n for n in available if not is_among(n, recipe.held_out)))
    if not chosen:
        raise RecipeError(
            "No dataset is left for the zoo: all that there are are held out."
            if available
            else "There is no dataset in the data folder. Expected .npz files, or folders that each hold one of images "
            "for every class; one such folder is a dataset: give the folder that it lies in."
        )
    for plan in recipe.plans:
        if absent := sorted(set(plan.datasets) - set(chosen)):
            raise RecipeError(f"plan {plan.name!r} is over {absent}, which the recipe's datasets lack. Add them there.")
    return chosen


def check_recipe(recipe: ZooRecipe) -> None:
    """What can be told of a recipe before any dataset is looked at.

    Raises:
        RecipeError: no plan, an unknown domain or start, a name given twice or of other characters than a file's, or
            a number out of its bounds.
    """
    if not recipe.plans:
        raise RecipeError(
            "The recipe has no plans, and hence no task. Give one: [[plans]] with name, kind and training."
        )
    _check_unique("plans", [plan.name for plan in recipe.plans])
    _check_positive("the recipe", size=recipe.size, support=recipe.support, max_clusters=recipe.max_clusters)
    for i, plan in enumerate(recipe.plans):
        _check_plan(plan, [p.name for p in recipe.plans[:i]])


def plan_tasks(recipe: ZooRecipe, clusters: Sequence[Sequence[str]]) -> list[FineTuneTask]:
    """All tasks of a recipe over `clusters`, which part its datasets; a task comes after the one that it goes on from.

    Raises:
        RecipeError: see `check_recipe`; or no task is there that another goes on from.
    """
    check_recipe(recipe)
    tasks: list[FineTuneTask] = []
    for plan in recipe.plans:
        for datasets, related in _targets(plan, clusters):
            for domains in [plan.domains] if plan.pool_domains else [(domain,) for domain in plan.domains]:
                for seed in range(recipe.seed, recipe.seed + plan.seeds):
                    tasks.append(
                        FineTuneTask(
                            plan=plan.name,
                            kind=plan.kind,
                            datasets=datasets,
                            related=related,
                            domains=domains,
                            scope=plan.scope,
                            training=plan.training,
                            own_share=plan.own_share,
                            class_subset=plan.class_subset,
                            size=recipe.size,
                            support=recipe.support,
                            seed=seed,
                            start=_start(plan, datasets, tasks),
                        )
                    )
    return tasks


def _targets(plan: Plan, clusters: Sequence[Sequence[str]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What each task is trained on, with what is related to it."""
    wanted = set(plan.datasets) or {d for cluster in clusters for d in cluster}
    chosen = [tuple(d for d in cluster if d in wanted) for cluster in clusters]
    chosen = [cluster for cluster in chosen if cluster]
    if plan.over == "all":
        return [(tuple(d for cluster in chosen for d in cluster), ())]
    if plan.over == "cluster":
        return [(cluster, ()) for cluster in chosen]
    related = {
        d: tuple(o for o in cluster if o != d) if plan.own_share < 1 else () for cluster in chosen for d in cluster
    }
    return [((d,), others) for d, others in related.items()]


def _start(plan: Plan, datasets: tuple[str, ...], tasks: list[FineTuneTask]) -> str | None:
    """The first task of the plan that this one goes on from which covers its datasets."""
    if plan.start is None:
        return None
    for task in tasks:
        if task.plan == plan.start and set(datasets) <= set(task.datasets):
            return task.id
    raise RecipeError(f"plan {plan.name!r}: no task of its start {plan.start!r} is over {list(datasets)}.")


def _check_plan(plan: Plan, earlier: list[str]) -> None:
    where = f"plan {plan.name!r}"
    if not plan.name or not all(c.isalnum() or c in PUNCTUATION for c in plan.name):
        raise RecipeError(
            f"{where}: its name begins the names of its entries' files; expected letters, digits and any of "
            f"{PUNCTUATION!r}."
        )
    _check_unique(where, plan.datasets)
    _check_unique(where, plan.domains)
    if not plan.domains or not plan.training.learning_rates or plan.training.steps < 1:
        raise RecipeError(f"{where} needs at least one domain, one learning rate and one step.")
    training, subset = plan.training, 1 if plan.class_subset is None else plan.class_subset
    _check_positive(
        where, batch_size=training.batch_size, classes=training.classes, class_subset=subset, seeds=plan.seeds
    )
    for domain in plan.domains:
        if domain not in DOMAINS:
            raise RecipeError(f"{where}: unknown domain {domain!r}; {nearest_names(domain, DOMAINS)}")
    if plan.start is not None and plan.start not in earlier:
        raise RecipeError(
            f"{where}: its start must be a plan before it, got {plan.start!r}; {nearest_names(plan.start, earlier)}"
        )
    if plan.kind == "episodic" and plan.scope == "head":
        raise RecipeError(f"{where}: an episodic task solves its head; its scope is 'all' or 'head+norm'.")
    if not 0 <= plan.own_share <= 1:
        raise RecipeError(f"{where}: own_share is a share of the episodes, from 0 to 1, got {plan.own_share:g}.")
    if plan.own_share < 1 and plan.kind != "episodic":
        raise RecipeError(
            f"{where}: own_share is of episodes, and a task of the kind {plan.kind!r} has none. Leave it out, or take "
            "the kind 'episodic'."
        )
    for rate in (*training.learning_rates, 1 if training.rate_of_start is None else training.rate_of_start):
        if not 0 < rate < math.inf:
            raise RecipeError(f"{where}: a learning rate, or rate_of_start, must be above 0, got {rate:g}.")
    if plan.training.rate_of_start is not None and plan.start is None:
        raise RecipeError(f"{where}: rate_of_start needs a start.")


def _check_positive(where: str, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise RecipeError(f"{where}: {name} must be 1 or more, got {value}.")


def _check_unique(where: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"{where}: {twice} given more than once.")
